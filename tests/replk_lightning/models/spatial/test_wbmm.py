"""WBMM's layer against convolutions of single windows, and against its release's numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.wbmm import WindowedBMM


def wave(*shape, step):
    """sin(step n), n counting the numbers."""
    return torch.sin(step * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).reshape(shape)


def in_windows(x, weight, height, width):
    """A depthwise convolution of each window alone, those at the border smaller."""
    y = torch.empty_like(x)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    for top in range(0, x.shape[2], height):
        for left in range(0, x.shape[3], width):
            here = ..., slice(top, top + height), slice(left, left + width)
            y[here] = conv2d(x[here], weight, padding=padding, groups=x.shape[1])
    return y


def move(norm, step):
    channels = norm.num_features
    norm.running_mean, norm.running_var = wave(channels, step=step), 1.5 + wave(channels, step=step)
    norm.weight.data, norm.bias.data = 2 + wave(channels, step=step), wave(channels, step=2 * step)


@pytest.mark.parametrize("size", [(14, 14), (9, 16), (3, 2), (1, 1)])
@pytest.mark.parametrize("kernel_size", [13, 1, (5, 9)])
def test_it_convolves_each_window_alone(size, kernel_size):
    layer = WindowedBMM(Place(8, kernel_size, 1)).double().eval()
    move(layer.norm, 0.5)
    move(layer.small_norm, 0.9)
    height, width = layer.table.weight.shape[2] // 2 + 1, layer.table.weight.shape[3] // 2 + 1
    x = wave(2, 8, *size, step=0.7)
    expected = layer.norm(in_windows(x, layer.table.weight, height, width) + x)
    expected += layer.small_norm(layer.small_conv.weight.reshape(-1, 1, 1) * x)
    torch.testing.assert_close(layer(x), expected)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected)


def test_the_small_kernel_stops_at_the_windows_borders():
    layer = WindowedBMM(Place(8, 7, 5)).double().eval()
    nn.init.zeros_(layer.norm.weight)
    x = wave(2, 8, 10, 8, step=0.7)
    expected = layer.small_norm(in_windows(x, layer.small_conv.weight, 4, 4))
    torch.testing.assert_close(layer(x), expected)


def test_windows_agree_with_the_release():
    # github.com/wansong-s/WBMM, segmentation/mmseg_custom/models/backbones/wbmm.py: wbmm(8, (3, 4))
    layer = WindowedBMM(Place(8, (5, 7))).double().eval()
    layer.table.weight.data = wave(8, 1, 5, 7, step=0.3)
    layer.norm = nn.Identity()
    y = layer(wave(2, 8, 7, 9, step=0.7))
    got = torch.stack([y[0, 0, 0, 0], y[1, 7, 6, 8], y[0, 3, 5, 2], y[1, 4, 2, 6], y.sum(), y.abs().sum()])
    expected = [
        0.005803483149076028,
        0.8701508118492887,
        0.957398775934411,
        -0.5690603167310883,
        2.639747042287716,
        749.3622484692837,
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_the_small_kernel_agrees_with_the_release():
    # github.com/wansong-s/WBMM, wbmm.py: wbmm(8, "True", 3, (7, 7)) on its one window, bn3.weight = 0
    layer = WindowedBMM(Place(8, 13, 5)).double().eval()
    layer.table.weight.data = wave(8, 1, 13, 13, step=0.3)
    layer.small_conv.weight.data = wave(8, 1, 5, 5, step=0.4)
    move(layer.norm, 0.5)
    move(layer.small_norm, 0.9)
    x = wave(2, 8, 7, 7, step=0.7)
    expected = [
        -2.4317635207806374,
        -3.1159476464568048,
        -8.023992224022045,
        0.48545050534599654,
        -730.3913545106094,
        2747.833467029909,
    ]
    for _ in range(2):
        y = layer(x)
        got = torch.stack([y[0, 0, 0, 0], y[1, 7, 6, 6], y[0, 3, 5, 2], y[1, 4, 2, 6], y.sum(), y.abs().sum()])
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
        layer.reparameterize()


@pytest.mark.parametrize("side", [1, 7, 14, 17])
def test_its_cost_is_the_places_of_each_window_that_are_on_the_map(side):
    layer = WindowedBMM(Place(8, 13))
    nn.init.ones_(layer.table.weight)
    layer.norm = nn.Identity()
    ones = torch.ones(1, 8, side, side)
    assert WindowedBMM.multiply_adds(Place(8, (13, 13), side=side)) == (layer(ones) - ones).sum().long().item()


def test_merging_keeps_mode_dtype_and_whether_it_learns():
    layer = WindowedBMM(Place(8, 7, 3)).to(torch.bfloat16).requires_grad_(False)
    merged = copy.deepcopy(layer)
    merged.reparameterize()
    assert merged.training
    assert [(key, each.dtype, each.requires_grad) for key, each in merged.named_parameters()] == [
        ("table_reparam.weight", torch.bfloat16, False),
        ("table_reparam.bias", torch.bfloat16, False),
    ]
    assert hasattr(layer, "norm")


def test_what_it_cannot_have_is_refused():
    with pytest.raises(ValueError, match="wbmm has no dilation, but got 2: use output_stride=32"):
        WindowedBMM(Place(8, 7, dilation=2))
    with pytest.raises(ValueError, match=r"small_kernel \(9, 9\) does not fit"):
        WindowedBMM(Place(8, 7, 9))
    watched = WindowedBMM(Place(8, 7, 3))
    watched.small_norm.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"large_kernel\.small_norm carries hooks"):
        watched.reparameterize("large_kernel")
    other = WindowedBMM(Place(8, 7))
    other.norm = nn.GroupNorm(2, 8)
    with pytest.raises(ValueError, match="norm is a GroupNorm: only a batch norm"):
        other.reparameterize()


def test_onnxruntime_cuts_maps_of_other_sizes(tmp_path):
    pytest.importorskip("onnxscript", reason="the ONNX exporter is a development dependency")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is a development dependency")
    torch.manual_seed(0)
    layer = WindowedBMM(Place(8, 13)).eval()
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (torch.randn(2, 8, 16, 17),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in ((2, 8, 16, 17), (3, 8, 23, 30)):
        x = torch.randn(size)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x), rtol=1e-4, atol=1e-4)
