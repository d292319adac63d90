"""ConvNeXt's layer: its equation place by place, and timm's block on the same weights."""

import pytest
import torch
from timm.models.convnext import ConvNeXtBlock

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.convnext import ConvNeXt


def fill(module):
    """Its parameters become waves of their own."""
    for number, tensor in enumerate(module.parameters()):
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.9 + number)
        tensor.data = wave.reshape(tensor.shape) + 0.5
    return module.double().eval()


def picture(channels):
    return torch.sin(torch.arange(2 * channels * 6 * 5, dtype=torch.float64) ** 2 / 50).reshape(2, channels, 6, 5)


@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_it_is_the_papers_equation_place_by_place(dilation):
    layer = fill(ConvNeXt(Place(8, (7, 3), dilation=dilation)))
    x = picture(8)
    y = layer(x)
    for top in range(6):
        for left in range(5):
            z = layer.conv.bias.expand(2, 8).clone()
            for row in range(7):
                for column in range(3):
                    i, j = top + (row - 3) * dilation, left + (column - 1) * dilation
                    if 0 <= i < 6 and 0 <= j < 5:
                        z += layer.conv.weight[:, 0, row, column] * x[:, :, i, j]
            deviation = z - z.mean(1, keepdim=True)
            variance = deviation.square().mean(1, keepdim=True)
            expected = layer.norm.weight * deviation / (variance + 1e-6).sqrt() + layer.norm.bias
            torch.testing.assert_close(y[:, :, top, left], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [16, 34])
@pytest.mark.parametrize("dilation", [1, 2])
def test_it_is_timms_block_before_its_1x1_layers(channels, dilation):
    block = fill(ConvNeXtBlock(channels, dilation=dilation, conv_mlp=True))
    layer = ConvNeXt(Place(channels, 7, dilation=dilation)).double().eval()
    layer.conv.load_state_dict(block.conv_dw.state_dict())
    layer.norm.load_state_dict(block.norm.state_dict())
    x = picture(channels)
    torch.testing.assert_close(layer(x), block.norm(block.conv_dw(x)), rtol=1e-10, atol=1e-10)
