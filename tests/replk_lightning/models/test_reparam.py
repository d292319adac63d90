import pytest
import torch
import torch.nn.functional as F
from model_samples import randomise, relative
from timm.layers import BatchNormAct2d
from timm.utils import reparameterize_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from native import DepthwiseConv2d, depthwise_conv2d_pair
from replk_lightning.models import reparam
from replk_lightning.models.reparam import ConvBN, LargeKernelConv, as_affine, fold_following_norm, odd_pair

PAIRS = [
    (K, k) for K in (1, 3, 5, 7, 13, (5, 9), (31, 5)) for k in (1, 3, 5, 13, (3, 5), (5, 1))
    if all(a <= b for a, b in zip(odd_pair("k", k), odd_pair("K", K), strict=True))
]  # fmt: skip


def sample(*args, seed=0, **options) -> LargeKernelConv:
    torch.manual_seed(seed)
    return randomise(LargeKernelConv(*args, **options), seed).double().eval()


def branch_by_definition(x, branch, stride, dilation):
    """BN(DW(x)) with the padding written as zeros around x and each tap added on its own."""
    weight, norm = branch.conv.weight, branch.bn
    reach = [k // 2 * dilation for k in weight.shape[-2:]]
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
    height, width = x.shape[-2:]
    y = torch.zeros_like(x)
    for i in range(weight.shape[-2]):
        for j in range(weight.shape[-1]):
            shifted = padded[..., i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            y += weight[:, 0, i, j].reshape(-1, 1, 1) * shifted
    y = (y - norm.running_mean.reshape(-1, 1, 1)) / torch.sqrt(norm.running_var + norm.eps).reshape(-1, 1, 1)
    y = y * norm.weight.reshape(-1, 1, 1) + norm.bias.reshape(-1, 1, 1)
    return y[..., ::stride, ::stride]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("large", "small"), [(7, 3), ((5, 9), (3, 5)), (13, None), (5, 5)])
@torch.no_grad()
def test_both_branches_compute_their_definition(large, small, stride, dilation):
    layer = sample(3, large, stride, small, dilation)
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    expected = branch_by_definition(x, layer.lkb_origin, stride, dilation)
    if small is not None:
        expected += branch_by_definition(x, layer.small_conv, stride, dilation)
    assert relative(layer(x), expected) < 1e-13


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize(("large", "small"), PAIRS)
@torch.no_grad()
def test_merging_is_exact(large, small, stride, dilation):
    layer = sample(3, large, stride, small, dilation)
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    before = layer(x)
    layer.reparameterize()
    assert relative(layer(x), before) < 1e-12
    assert [key for key, _ in layer.named_parameters()] == ["lkb_reparam.weight", "lkb_reparam.bias"]


@torch.no_grad()
def test_the_small_kernel_lands_in_the_middle_of_the_large_one():
    layer = LargeKernelConv(1, 7, small_kernel=3).eval()
    layer.lkb_origin.conv.weight.zero_()
    layer.small_conv.conv.weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
    layer.small_conv.bn.eps = 0.0
    layer.reparameterize()
    assert torch.equal(layer.lkb_reparam.weight[0, 0, 2:5, 2:5], torch.arange(9.0).reshape(3, 3))
    assert layer.lkb_reparam.weight.sum() == 36
    assert layer.lkb_reparam.bias == 0


def test_merging_twice_changes_nothing():
    layer = sample(4, 9, small_kernel=5)
    layer.reparameterize()
    once = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.reparameterize()
    assert layer.merged
    assert once.keys() == layer.state_dict().keys()
    assert all(torch.equal(once[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_merging_keeps_device_dtype_and_geometry(device, dtype):
    layer = LargeKernelConv(4, (9, 5), 2, 3, 2).to(device, dtype)
    layer.reparameterize()
    conv = layer.lkb_reparam
    assert isinstance(conv, DepthwiseConv2d)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((9, 5), (2, 2), (8, 4), (2, 2))
    assert {(p.device.type, p.dtype) for p in conv.parameters()} == {(device, dtype)}
    assert all(p.requires_grad and p.is_leaf for p in conv.parameters())


def test_merging_in_half_precision_rounds_once():
    wide = sample(8, 13, small_kernel=5).bfloat16().double()
    half = sample(8, 13, small_kernel=5).bfloat16()
    wide.reparameterize()
    half.reparameterize()
    ours, exact = half.lkb_reparam.weight.double(), wide.lkb_reparam.weight
    assert ((ours - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


def test_timm_merges_every_layer_of_a_copy():
    model = nn.Sequential(sample(4, 7, small_kernel=3), nn.Sequential(sample(4, 5, seed=1)))
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    merged = reparameterize_model(model)
    assert relative(merged(x), model(x)) < 1e-12
    assert [m.merged for m in merged.modules() if isinstance(m, LargeKernelConv)] == [True, True]
    assert not any(m.merged for m in model.modules() if isinstance(m, LargeKernelConv))


def test_a_merged_layer_trains():
    layer = sample(2, 5, small_kernel=3)
    layer.reparameterize()
    layer(torch.randn(1, 2, 6, 6, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def watched(module):
    module.register_forward_hook(lambda *_: None)


def with_another_convolution(layer):
    layer.small_conv.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)


@pytest.mark.parametrize(
    ("options", "change", "once"),
    [
        ({"small_kernel": 3}, lambda layer: None, True),
        ({"small_kernel": 3}, lambda layer: watched(layer.lkb_origin.bn), True),
        ({"small_kernel": 3}, lambda layer: watched(layer.small_conv.conv), False),
        ({"small_kernel": 3}, lambda layer: watched(layer.lkb_origin), False),
        ({"small_kernel": 3}, lambda layer: layer.lkb_origin.append(nn.ReLU()), False),
        ({"small_kernel": 3}, with_another_convolution, False),
        ({"small_kernel": 3, "stride": 2}, lambda layer: None, False),
        ({"small_kernel": 3, "dilation": 2}, lambda layer: None, False),
        ({}, lambda layer: None, False),
    ],
)
def test_x_is_read_once_on_a_gpu_where_nobody_watches_or_replaced_a_convolution(monkeypatch, options, change, once):
    calls = []

    def counted(*tensors):
        calls.append(tensors)
        return depthwise_conv2d_pair(*tensors)

    monkeypatch.setattr(reparam, "depthwise_conv2d_pair", counted)
    with FakeTensorMode(), torch.device("cuda"):
        layer = LargeKernelConv(4, 7, **options)
        change(layer)
        side = 8 // options.get("stride", 1)
        assert layer(torch.empty(2, 4, 8, 8)).shape == (2, 4, side, side)
    assert len(calls) == once
    LargeKernelConv(4, 7, **options)(torch.randn(2, 4, 8, 8))  # on a CPU never
    assert len(calls) == once


def test_reading_once_computes_the_same(monkeypatch):
    layer, x = LargeKernelConv(4, 7, small_kernel=3).eval(), torch.randn(2, 4, 8, 8)
    y = layer(x)
    monkeypatch.setattr(LargeKernelConv, "_reads_once", lambda *_: True)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4, but only odd sizes .* use 5 instead"),
        ({"kernel_size": (3, 6)}, r"kernel_size is \(3, 6\)"),
        ({"kernel_size": 7, "small_kernel": 2}, "small_kernel is 2"),
        ({"kernel_size": 3, "small_kernel": 5}, r"small_kernel \(5, 5\) does not fit into kernel_size \(3, 3\)"),
        ({"kernel_size": (9, 3), "small_kernel": 5}, "does not fit"),
        ({"kernel_size": 0}, "use 1 instead"),
    ],
)
def test_impossible_kernels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LargeKernelConv(4, **options)


@pytest.mark.parametrize("affine", [True, False])
@torch.no_grad()
def test_an_affine_map_equals_its_batch_norm(affine):
    norm = randomise(nn.BatchNorm2d(5, affine=affine)).double().eval()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    scale, shift = as_affine(norm, torch.float64)
    assert relative(x * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1), norm(x)) < 1e-14


def test_a_batch_norm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="track_running_stats"):
        as_affine(nn.BatchNorm2d(5, track_running_stats=False), torch.float32)


@torch.no_grad()
def test_folding_takes_a_bias_along():
    conv = nn.Conv2d(3, 6, 3, padding=1).double()
    norm = randomise(nn.BatchNorm2d(6)).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    weight, bias = fold_following_norm(conv, norm)
    assert relative(F.conv2d(x, weight, bias, padding=1), norm(conv(x))) < 1e-13


def test_conv_bn_names_its_layers_as_the_release_does():
    assert list(dict(ConvBN(nn.Conv2d(1, 1, 1), nn.ReLU()).named_children())) == ["conv", "bn", "nonlinear"]
    assert not isinstance(ConvBN(nn.Conv2d(1, 1, 1)).bn, BatchNormAct2d)
