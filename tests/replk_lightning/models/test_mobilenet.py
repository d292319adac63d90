import pytest
import timm
import torch
import torchvision
from model_samples import randomise, relative
from timm.data import resolve_data_config
from timm.models import group_parameters
from torch import nn

from native import DepthwiseConv2d
from replk_lightning.models.mobilenet import DepthwiseOptions, InvertedResidual
from replk_lightning.models.reparam import LargeKernelConv


def on_meta(**options):
    with torch.device("meta"):
        return timm.create_model("mobilenetv2_lk", **options)


def small(**options):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_lk", **{"width": 0.35, "num_classes": 10} | options)
    return randomise(model).double().eval()


def blocks(model):
    return [m for m in model.modules() if isinstance(m, InvertedResidual)]


def depthwise(model):
    return [m.lkb_origin.conv for m in model.modules() if isinstance(m, LargeKernelConv)]


@pytest.mark.parametrize("width", [1.0, 0.5])
@torch.no_grad()
def test_the_3x3_net_is_torchvisions(width):
    theirs = randomise(torchvision.models.mobilenet_v2(width_mult=width, num_classes=10)).double().eval()
    ours = small(width=width)
    values = list(theirs.state_dict().values())
    assert len(values) == len(ours.state_dict())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert relative(ours(x), theirs(x)) < 1e-12


@torch.no_grad()
def test_a_large_kernel_with_zeros_around_a_small_one_is_the_small_one():
    plain, large = small(kernel_size=3), small(kernel_size=13)
    state = plain.state_dict()
    for name, value in state.items():
        if name.endswith("lkb_origin.conv.weight"):
            state[name] = nn.functional.pad(value, (5, 5, 5, 5))
    large.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative(large(x), plain(x)) < 1e-12


@torch.no_grad()
def test_a_dilated_kernel_is_a_sparse_large_one():
    """Sec. 5.3: dilation 4 makes a 3×3 kernel a 9×9 one with zeros between."""
    dilated, dense = small(dilation=4), small(kernel_size=9)
    state = dilated.state_dict()
    for name, value in state.items():
        if name.endswith("lkb_origin.conv.weight"):
            state[name] = value.new_zeros(len(value), 1, 9, 9)
            state[name][..., ::4, ::4] = value
    dense.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative(dilated(x), dense(x)) < 1e-12


@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 13, 31])
def test_all_seventeen_depthwise_layers_change(kernel):
    model = on_meta(kernel_size=kernel)
    convs = depthwise(model)
    assert [conv.kernel_size for conv in convs] == [(kernel, kernel)] * 17
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1} == {DepthwiseConv2d}
    assert [i for i, conv in enumerate(convs) if conv.stride == (2, 2)] == [1, 3, 6, 13]
    assert {conv.padding for conv in convs} == {(kernel // 2, kernel // 2)}


def test_small_kernels_stand_beside_larger_ones_only():
    def small_kernels(**options):
        layers = [m for m in on_meta(**options).modules() if isinstance(m, LargeKernelConv)]
        return [m.small_conv.conv.kernel_size[0] if hasattr(m, "small_conv") else None for m in layers]

    assert small_kernels(kernel_size=13, small_kernel=3) == [3] * 17
    assert small_kernels(kernel_size=13) == small_kernels(kernel_size=3, small_kernel=3) == [None] * 17
    assert small_kernels(last_stage_kernel=7, small_kernel=3) == [None] * 14 + [3] * 3


def test_the_last_stage_is_the_three_layers_of_960_channels():
    convs = depthwise(on_meta(last_stage_kernel=13))
    assert [conv.kernel_size[0] for conv in convs] == [3] * 14 + [13] * 3
    assert [conv.groups for conv in convs if conv.kernel_size[0] == 13] == [960] * 3


@pytest.mark.parametrize("width", [1.0, 0.35])
def test_ten_shortcuts_or_none(width):
    assert sum(block.shortcut for block in blocks(on_meta(width=width))) == 10
    assert sum(block.shortcut for block in blocks(on_meta(width=width, shortcut=False))) == 0


@torch.no_grad()
def test_a_shortcut_adds_the_input():
    torch.manual_seed(0)
    plain, residual = (
        randomise(InvertedResidual(8, 8, 6, DepthwiseOptions(5), shortcut=s)).eval() for s in (False, True)
    )
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 7, 7)
    assert torch.equal(residual(x), x + plain(x))


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_stochastic_depth_is_timms(rate):
    ours = [block.drop_path.drop_prob for block in blocks(on_meta(drop_path_rate=rate)) if block.shortcut]
    with torch.device("meta"):
        theirs = timm.create_model("mobilenetv2_100", drop_path_rate=rate)
    skips = [block for block in theirs.modules() if getattr(block, "has_skip", False)]
    assert len(ours) == 10
    assert ours == pytest.approx([getattr(block.drop_path, "drop_prob", 0.0) for block in skips])


def test_stochastic_depth_drops_all_but_the_shortcut():
    block = InvertedResidual(4, 4, 6, DepthwiseOptions(3), shortcut=True, drop_path=1 - 1e-9).train()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
    plain = InvertedResidual(4, 4, 6, DepthwiseOptions(3), shortcut=True).train()
    before = torch.get_rng_state()
    plain(x)
    assert torch.equal(torch.get_rng_state(), before), "a rate of 0 draws nothing"


def test_dilation_is_for_regular_kernels():
    convs = depthwise(on_meta(dilation=6, last_stage_kernel=7))
    assert [conv.dilation[0] for conv in convs] == [6] * 14 + [1] * 3
    assert {conv.padding[0] for conv in convs[:14]} == {6}


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [
        (32, [1] * 17),
        (16, [1] * 13 + [2, 1, 1, 2]),
        (8, [1] * 6 + [2, 1, 1, 1, 2, 1, 1, 4, 1, 1, 4]),  # stages 1, 1, 1, 2, 2, 4, 4 in MMSegmentation's settings
    ],
)
def test_output_stride_turns_strides_into_dilation(output_stride, dilations):
    assert [conv.dilation[0] for conv in depthwise(on_meta(output_stride=output_stride))] == dilations
    large = {"kernel_size": 13, "output_stride": output_stride}
    assert {conv.dilation[0] for conv in depthwise(on_meta(**large))} == {1}
    assert [conv.dilation[0] for conv in depthwise(on_meta(**large, dilate_large=True))] == dilations
    twice = [d * 4 for d in dilations]
    assert [conv.dilation[0] for conv in depthwise(on_meta(dilation=4, output_stride=output_stride))] == twice


@pytest.mark.parametrize("kernel", [3, 13])
@pytest.mark.parametrize(
    ("output_stride", "sizes"), [(32, (32, 16, 8, 4, 2)), (16, (32, 16, 8, 4, 4)), (8, (32, 16, 8, 8, 8))]
)
@torch.no_grad()
def test_feature_maps(output_stride, sizes, kernel):
    model = small(kernel_size=kernel, output_stride=output_stride, features_only=True)
    maps = model(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert tuple(m.shape[-1] for m in maps) == sizes
    assert model.feature_info.reduction() == [64 // size for size in sizes]
    assert model.feature_info.channels() == [m.shape[1] for m in maps]
    assert on_meta(features_only=True).feature_info.channels() == [16, 24, 32, 96, 320]


@torch.no_grad()
def test_chosen_maps_are_the_same_maps():
    whole, part = small(features_only=True), small(features_only=True, out_indices=(1, 3))
    assert len(part.model.stages) == 5
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert all(torch.equal(a, whole(x)[i]) for a, i in zip(part(x), (1, 3), strict=True))


@torch.no_grad()
def test_intermediates_come_with_the_final_features():
    model = small()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(maps) == 5
    early, maps = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(early, maps[0])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"stem_stride": 1}, [28, 14, 7, 4, 2]),
        ({"stem_stride": 1, "strides": (1, 2, 1, 2, 1, 1, 1)}, [28, 14, 14, 7, 7]),
    ],
)
@torch.no_grad()
def test_small_pictures_keep_large_maps(options, sizes):
    model = small(in_chans=1, kernel_size=13, small_kernel=3, features_only=True, **options)
    assert [m.shape[-1] for m in model(torch.randn(1, 1, 28, 28, dtype=torch.float64))] == sizes


@pytest.mark.parametrize("in_chans", [1, 3])
def test_cpus_compute_channels_last(in_chans):
    model = small(in_chans=in_chans, stem_stride=1)
    layouts = []
    for layer in model.modules():
        if isinstance(layer, LargeKernelConv):
            layer.register_forward_hook(
                lambda _, inputs, __: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(2, in_chans, 32, 32, dtype=torch.float64))
    assert layouts == [True] * 17


def test_initialisation():
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_lk", kernel_size=13)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (model.head.bias == 0).all()


@torch.no_grad()
def test_the_head_can_be_replaced_and_removed():
    model = small()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert relative(model(x), model.get_classifier()(pooled)) < 1e-14
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.1)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)


def test_checkpointing_keeps_the_gradients():
    plain, saving = (small(drop_rate=0.0).train() for _ in range(2))
    saving.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, saving):
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-12)


def test_layers_for_learning_rate_decay():
    model = on_meta()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["stem.conv.weight"] == 0
    assert sorted(set(layers.values())) == list(range(1 + 17 + 1))
    assert layers["final.conv.weight"] == layers["head.bias"] == 18
    stages = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert sorted(set(stages.values())) == list(range(1 + 7 + 1))
    assert model.no_weight_decay() == set()


def test_data_settings():
    config = resolve_data_config(model=on_meta())
    assert config["input_size"] == (3, 224, 224)
    assert config["crop_pct"] == 0.875


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4, but only odd sizes keep the map in place: use 5 instead"),
        ({"last_stage_kernel": 8}, "last_stage_kernel is 8"),
        ({"kernel_size": 9, "small_kernel": 2}, "small_kernel is 2"),
        ({"kernel_size": 9, "dilation": 4}, "dilation is 4, but it applies to 3×3 kernels only"),
        ({"strides": (2, 2)}, "one stride for each"),
        ({"output_stride": 4}, "output_stride is 4: use 8, 16 or 32"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)
