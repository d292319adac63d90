import pytest
import torch
from timm.utils import reparameterize_model

from replk_lightning.measure.kernel_pictures import central_share, fused_kernels, last_stage_layer, picture
from replk_lightning.models import create_model


def net(**options):
    model = create_model("mobilenetv2_lk", kernel_size=13, width=0.1, num_classes=10, **options)
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_the_layer_is_the_first_of_stride_1_in_the_last_stage():
    model = create_model("mobilenetv2_lk", kernel_size=13)
    seen = []
    for module in model.modules():
        if hasattr(module, "lkb_origin"):
            module.register_forward_pre_hook(lambda m, x: seen.append((m, x[0].shape)))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    at_7 = [(m, shape) for m, shape in seen if shape[-1] == 7]
    layer, shape = at_7[0]
    assert layer is last_stage_layer(model)
    assert shape[1] == 960
    assert layer.lkb_origin.conv.stride == (1, 1)


def test_merged_kernels_are_those_of_reparameterize():
    model = net(small_kernel=3)
    large, merged = fused_kernels(last_stage_layer(model))
    assert not torch.equal(large, merged)
    assert torch.equal(large[..., :5, :], merged[..., :5, :])
    layer = last_stage_layer(reparameterize_model(model))
    torch.testing.assert_close(layer.lkb_reparam.weight, merged)
    with pytest.raises(ValueError, match="merged already"):
        fused_kernels(layer)


def test_without_a_branch_merging_changes_nothing():
    model = net()
    large, merged = fused_kernels(last_stage_layer(model))
    assert torch.equal(large, merged)
    torch.testing.assert_close(last_stage_layer(reparameterize_model(model)).lkb_reparam.weight, large)


def test_a_picture_sums_absolute_values_and_ends_at_one():
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 0, 0], weight[1, 0, 0, 0], weight[1, 0, 2, 1] = -1, 3, -2
    shown = picture(weight)
    assert shown[0, 0] == 1
    assert shown[2, 1] == 0.5
    assert shown.sum() == 1.5


def test_the_centre_of_an_even_kernel_has_its_share_of_the_area():
    assert central_share(torch.ones(13, 13)) == pytest.approx(9 / 169)
    only = torch.zeros(13, 13)
    only[5:8, 5:8] = 1
    assert central_share(only) == 1
    assert central_share(only, side=1) == pytest.approx(1 / 9)
