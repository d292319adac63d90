"""VAN's large kernel attention against sums over its taps, and against its release's numbers."""

import pytest
import torch
from torch import nn

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.lka import LargeKernelAttention


def wave(*shape, step):
    """sin(step n), n counting the numbers."""
    return torch.sin(step * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).reshape(shape)


def waving(place):
    layer = LargeKernelAttention(place).double().eval()
    for parameter in layer.attention.parameters():
        parameter.data = wave(*parameter.shape, step=0.3 if parameter.ndim > 1 else 0.5)
    return layer


def tap_by_tap(x, conv, gap):
    """A depthwise convolution as a sum of shifted maps, its taps `gap` pixels apart."""
    _, _, height, width = x.shape
    taps_h, taps_w = conv.weight.shape[-2:]
    y = conv.bias.reshape(-1, 1, 1).expand_as(x).clone()
    for row in range(height):
        for column in range(width):
            for a in range(taps_h):
                for b in range(taps_w):
                    from_row, from_column = row + (a - taps_h // 2) * gap, column + (b - taps_w // 2) * gap
                    if 0 <= from_row < height and 0 <= from_column < width:
                        y[..., row, column] += conv.weight[:, 0, a, b] * x[..., from_row, from_column]
    return y


@pytest.mark.parametrize(("kernel_size", "dilation", "far"), [(13, 1, (5, 5)), ((7, 3), 2, (3, 1))])
def test_it_multiplies_the_map_by_what_the_convolutions_say(kernel_size, dilation, far):
    layer = waving(Place(8, kernel_size, dilation=dilation))
    layer.norm.running_mean, layer.norm.running_var = wave(8, step=0.5), 1.5 + wave(8, step=0.5)
    x = wave(1, 8, 7, 5, step=0.7)
    assert layer.attention.far.kernel_size == far
    with torch.no_grad():
        attention = tap_by_tap(tap_by_tap(x, layer.attention.near, dilation), layer.attention.far, 3 * dilation)
        mixed = torch.einsum("oc,nchw->nohw", layer.attention.channels.weight[..., 0, 0], attention)
        mixed += layer.attention.channels.bias.reshape(-1, 1, 1)
        torch.testing.assert_close(layer(x), layer.norm(x * mixed))


def test_it_agrees_with_the_release():
    # github.com/Visual-Attention-Network/VAN-Classification, models/van.py: AttentionModule(8)
    layer = waving(Place(8, 21))
    layer.norm = nn.Identity()
    y = layer(wave(2, 8, 12, 10, step=0.7))
    got = torch.stack([y[1, 7, 11, 9], y[0, 3, 5, 2], y[1, 4, 6, 6], y.sum(), y.abs().sum()])
    expected = [4.3538927102989495, -1.1770670561816694, 2.8627942533606063, 193.15299984621555, 4197.49783027856]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("kernel_size", "far"), [(1, 1), (5, 3), (9, 3), (11, 5), (21, 7), (29, 11), (31, 11)])
def test_an_even_number_of_far_taps_becomes_the_next_odd_one(kernel_size, far):
    layer = LargeKernelAttention(Place(8, kernel_size))
    assert layer.attention.far.kernel_size == (far, far)
    assert 4 + 3 * (far - 1) + 1 >= kernel_size


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size is 20, but only odd sizes"):
        LargeKernelAttention(Place(8, 20))
