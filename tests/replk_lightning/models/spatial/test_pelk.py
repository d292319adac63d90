"""PeLK's layer: the paper's sharing grids, its equations in loops, and what the positional embedding comes to.

There is no release to compare with.
"""

from math import log2

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.functional import conv2d

from replk_lightning.models.spatial import Place, get_spatial
from replk_lightning.models.spatial.pelk import PeripheralConv2d, sharing_grid
from replk_lightning.models.weights import load_official


def peripheral(channels: int, size: tuple[int, int], dilation: int = 1) -> PeripheralConv2d:
    torch.manual_seed(0)
    conv = PeripheralConv2d(channels, size, dilation).double()
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    return conv


def region(grid: list[int], place: int) -> int:
    """Equation 1: of the tap at `place` along a line."""
    return next(a for a in range(len(grid)) if sum(grid[:a]) <= place < sum(grid[: a + 1]))


def equation_3(conv: PeripheralConv2d, x: torch.Tensor) -> torch.Tensor:
    """Its sums tap by tap, x being 0 outside of the map."""
    (height, width), step = conv.kernel_size, conv.dilation
    rows, columns = sharing_grid(height), sharing_grid(width)
    y = torch.zeros_like(x)
    for c, top, left in torch.cartesian_prod(*map(torch.arange, x.shape[1:])).tolist():
        for i in range(height):
            for j in range(width):
                down, right = top + (i - height // 2) * step, left + (j - width // 2) * step
                inside = 0 <= down < x.shape[2] and 0 <= right < x.shape[3]
                seen = x[:, c, down, right] if inside else 0.0
                weight = conv.weight[c, 0, region(rows, i), region(columns, j)]
                y[:, c, top, left] += weight * (seen + conv.embedding[0, 0, i, j])
    return y


@pytest.mark.parametrize(
    ("size", "half"),
    [
        (31, [7, 4, 2, 1, 1, 1]),  # Fig. 1b
        (33, [8, 4, 2, 1, 1, 1]),  # Table 5, No. 5
        (51, [9, 8, 4, 2, 1, 1, 1]),  # Table 6, the one that PeLK has
        (101, [17, 16, 8, 4, 2, 1, 1, 1, 1]),  # Equation 2 with PeLK-101's centre of 7
        (3, [1, 1]),
        (1, [1]),
    ],
)
def test_the_sharing_grid_is_the_papers(size, half):
    assert sharing_grid(size) == [*half, *half[-2::-1]]


def test_weights_grow_with_the_logarithm_of_a_lines_taps():
    for size in range(1, 2048, 2):
        assert sum(sharing_grid(size)) == size
        assert len(sharing_grid(size)) <= 2 * log2(size) + 5
    layer = get_spatial("pelk")(Place(128, 101, 5))
    kernel, embedding, small, norms = 128 * 17**2, 101**2, 128 * 5**2, 4 * 128
    assert sum(each.numel() for each in layer.parameters()) == kernel + embedding + small + norms


@pytest.mark.parametrize(("size", "dilation"), [((9, 13), 1), ((3, 11), 2)])
def test_it_is_the_papers_equations(size, dilation):
    conv = peripheral(2, size, dilation)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = equation_3(conv, x)
        torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(conv.plain()(x), expected, rtol=1e-12, atol=1e-12)


def test_a_shared_weights_gradient_is_the_sum_over_its_taps():
    conv = peripheral(3, (13, 31))
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    kernel = conv.kernel_and_bias()[0].detach().requires_grad_()
    embedding = conv.embedding.detach().clone().requires_grad_()
    y = conv2d(x, kernel, (kernel * embedding).sum((1, 2, 3)), padding=(6, 15), groups=3)
    y.square().sum().backward()
    conv(x).square().sum().backward()
    summed = torch.zeros_like(conv.weight)
    for i in range(13):
        for j in range(31):
            summed[:, 0, region(sharing_grid(13), i), region(sharing_grid(31), j)] += kernel.grad[:, 0, i, j]
    torch.testing.assert_close(conv.weight.grad, summed, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(conv.embedding.grad, embedding.grad, rtol=1e-12, atol=1e-9)


def test_the_embedding_is_a_bias_which_the_norm_takes_away():
    torch.manual_seed(0)
    layer = get_spatial("pelk")(Place(8, 13, 5)).double()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    before = layer(x)
    before.square().sum().backward()
    conv = layer.lkb_origin.conv
    assert conv.embedding.grad.abs().max() < 1e-9
    nn.init.normal_(conv.embedding)
    torch.testing.assert_close(layer(x), before, rtol=1e-10, atol=1e-10)


def test_a_layer_that_cannot_be_merged_stays_as_it_is():
    layer = get_spatial("pelk")(Place(8, 13, 5))
    layer.lkb_origin.bn = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(ValueError, match="running statistics"):
        layer.reparameterize()
    assert type(layer.lkb_origin.conv) is PeripheralConv2d


def test_a_merged_nets_file_merges_a_fresh_net(tmp_path):
    options = {"spatial": "pelk", "dims": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "img_size": 32}
    merged, fresh = (timm.create_model("replknet_13", **options).eval() for _ in range(2))
    merged = reparameterize_model(merged)
    torch.save(merged.state_dict(), tmp_path / "merged.pth")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_official(fresh, tmp_path / "merged.pth")(x), merged(x))
