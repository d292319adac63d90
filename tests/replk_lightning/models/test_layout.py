"""The layout helper: what it returns, and that whole nets go through torch.vmap and torch.fx with it."""

import copy
import io

import pytest
import timm
import torch
from torch._subclasses import FakeTensorMode

import replk_lightning  # noqa: F401  (registers the nets)
from replk_lightning.models.layout import fast_layout, in_fast_layout
from replk_lightning.models.replknet import RepLKNet

NETS = {"replknet_3": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, "mobilenetv2_lk": {"width": 0.1}}


@pytest.fixture(params=NETS)
def name(request):
    return request.param


def net(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **NETS[name], **options).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_channels_lie_side_by_side_on_a_cpu_and_where_they_were_elsewhere(x):
    assert in_fast_layout(x).is_contiguous(memory_format=torch.channels_last)
    assert in_fast_layout(x, torch.contiguous_format).is_contiguous()
    assert in_fast_layout(x.to("meta")).is_contiguous()
    mapped = torch.vmap(in_fast_layout)(x[None])
    assert torch.equal(mapped[0], x)
    assert mapped[0].is_contiguous(memory_format=torch.channels_last)


def test_on_a_gpu_16_bits_decide(monkeypatch):
    with FakeTensorMode():
        x = torch.empty(2, 3, 8, 8, device="cuda", dtype=torch.float32)
        assert [fast_layout(each) for each in (x, x.half(), x.bfloat16())] == [None, *[torch.channels_last] * 2]
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        assert in_fast_layout(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_net_computes_in_the_layout_that_it_is_told(name, x, layout):
    model = net(name)
    expected = model(x)
    model.memory_format = layout
    told = copy.deepcopy(model)
    assert told.forward_features(x).is_contiguous(memory_format=layout)
    torch.testing.assert_close(told(x), expected)
    file = io.BytesIO()
    torch.save(told, file)
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=False).memory_format is layout
    told.memory_format = None
    assert torch.equal(told(x), expected)
    with pytest.raises(ValueError, match=r"memory_format is torch\.preserve_format: give"):
        told.memory_format = torch.preserve_format


def test_a_net_under_vmap(name, x):
    model = net(name, num_classes=5)
    torch.testing.assert_close(torch.vmap(model)(x[None])[0], model(x), rtol=1e-4, atol=1e-5)


def test_a_net_traced_by_fx(name, x):
    model = net(name, num_classes=5)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_features_by_fx_are_the_features(name, x):
    ours, by_fx = net(name, features_only=True), net(name, features_only=True, feature_cls="fx")
    by_fx.load_state_dict(ours.state_dict(), strict=False)
    assert by_fx.feature_info.reduction() == ours.feature_info.reduction()
    assert [y.shape for y in by_fx(x)] == [y.shape for y in ours(x)]


def test_a_class_may_set_the_layout_of_its_nets():
    class InPlanes(RepLKNet):
        memory_format = torch.contiguous_format

    options = {"kernel_sizes": (3, 3, 3, 3), "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 2}
    net = InPlanes(**options)
    assert (net.memory_format, net.layout) == (torch.contiguous_format, "nchw")
    net.memory_format = torch.channels_last
    assert net.memory_format is torch.channels_last
    assert RepLKNet(**options).memory_format is None
