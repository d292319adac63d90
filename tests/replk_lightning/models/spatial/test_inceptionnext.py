"""InceptionNeXt's layer: its equation channel by channel, timm's block on the same weights, its cost, narrow nets."""

import pytest
import torch
from timm.models.inception_next import MetaNeXtBlock
from torch.nn.functional import batch_norm, pad

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.inceptionnext import InceptionNeXt


def fill(module):
    """Its tensors, statistics of norms as well, become waves of their own, variances positive."""
    for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
        if tensor.is_floating_point():
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.9 + number)
            tensor.data = wave.reshape(tensor.shape) + 1.5
    return module.double().eval()


def picture(channels):
    return torch.sin(torch.arange(2 * channels * 7 * 9, dtype=torch.float64) ** 2 / 50).reshape(2, channels, 7, 9)


def slow(x, kernel, dilation):
    """(H, W) under a filter (K_h, K_w), zeros around the map."""
    reach_h, reach_w = (k // 2 * dilation for k in kernel.shape)
    around = pad(x, (reach_w, reach_w, reach_h, reach_h))
    y = torch.zeros_like(x)
    for row, taps in enumerate(kernel):
        for column, tap in enumerate(taps):
            top, left = row * dilation, column * dilation
            y += tap * around[top : top + x.shape[0], left : left + x.shape[1]]
    return y


@pytest.mark.parametrize(("channels", "dilation"), [(8, 1), (18, 2)])
@torch.no_grad()
def test_it_is_the_papers_equation_channel_by_channel(channels, dilation):
    layer = fill(InceptionNeXt(Place(channels, (5, 11), dilation=dilation)))
    x = picture(channels)
    kernels = [kernel[0] for conv in (layer.square, layer.row, layer.column) for kernel in conv.weight]
    assert [tuple(kernel.shape) for kernel in kernels[:: channels // 8]] == [(3, 3), (1, 11), (5, 1)]
    expected = x.clone()
    for maps in expected:
        for channel, kernel in zip(range(channels - len(kernels), channels), kernels, strict=True):
            maps[channel] = slow(maps[channel], kernel, dilation)
    norm = layer.norm
    expected = batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [16, 34])
@pytest.mark.parametrize("dilation", [1, 2])
def test_it_is_timms_block_whose_biases_the_norm_takes(channels, dilation):
    block = fill(MetaNeXtBlock(channels, dilation))
    mixer, norm = block.token_mixer, block.norm
    layer = InceptionNeXt(Place(channels, 11, dilation=dilation)).double().eval()
    pairs = (layer.square, mixer.dwconv_hw), (layer.row, mixer.dwconv_w), (layer.column, mixer.dwconv_h)
    for own, theirs in pairs:
        own.weight = theirs.weight
    layer.norm.load_state_dict(norm.state_dict())
    biases = torch.cat([theirs.bias.detach() for _, theirs in pairs])
    layer.norm.running_mean[-len(biases) :] -= biases
    x = picture(channels)
    torch.testing.assert_close(layer(x), norm(mixer(x)), rtol=1e-10, atol=1e-10)
    layer.train()
    norm.train()  # a batch's own mean holds the bias
    torch.testing.assert_close(layer(x), norm(mixer(x)), rtol=1e-10, atol=1e-10)


def test_its_cost_is_an_eighth_of_the_channels_times_three_filters():
    # on 2×2 every place sees 4 of 3×3's taps, 2 of a row's and 2 of a column's
    assert InceptionNeXt.multiply_adds(Place(34, 11, side=2)) == 4 * 4 * (4 + 2 + 2)


def test_less_than_eight_channels_are_refused():
    with pytest.raises(ValueError, match="splits 8 channels or more, not 6: use a wider net"):
        InceptionNeXt(Place(6, 11))
