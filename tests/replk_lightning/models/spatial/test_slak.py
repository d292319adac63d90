"""SLaK's strips beside the paper's definition and the release's numbers."""

import pytest
import torch
from torch.nn.functional import pad

from native import DepthwiseConv2d
from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.base import taps_on_map
from replk_lightning.models.spatial.slak import SLaK


def wave(shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.37 + phase).reshape(shape)


def filled(layer):
    """Floats of its state from a formula, one after the other."""
    floats = [(key, each) for key, each in layer.state_dict().items() if each.is_floating_point()]
    for i, (key, each) in enumerate(floats):
        each.copy_(wave(each.shape, i) + 1.5 * key.endswith("running_var"))
    return layer.eval()


def slow(x, branch, dilation):
    """Windows times the filter, one output after the other, and the batch norm's formula."""
    weight, bn = branch.conv.weight[:, 0], branch.bn
    reach = [dilation * (size // 2) for size in weight.shape[1:]]
    padded = pad(x, (reach[1], reach[1], reach[0], reach[0]))
    y = torch.empty_like(x)
    for h in range(x.shape[2]):
        for w in range(x.shape[3]):
            window = padded[:, :, h : h + 2 * reach[0] + 1 : dilation, w : w + 2 * reach[1] + 1 : dilation]
            y[:, :, h, w] = (window * weight).sum((2, 3))
    scale, shift, mean, variance = (
        each[:, None, None] for each in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    return (y - mean) / (variance + bn.eps).sqrt() * scale + shift


@pytest.mark.parametrize("size", [9, (11, 7), (7, 3), 5, 3, 1])
@pytest.mark.parametrize("small", [3, None])
@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_it_is_the_papers_sum_of_strips_and_square_merged_or_not(size, small, dilation):
    small = None if size == 1 else small
    layer = filled(SLaK(Place(4, size, small, dilation)).double())
    height, width = (size, size) if isinstance(size, int) else size
    sizes = [(height, min(5, width)), (min(5, height), width), (small, small)]
    assert [each.conv.kernel_size for each in layer.children()] == sizes[: 2 + bool(small)]
    x = wave((2, 4, 6, 5), 50.0)
    expected = sum(slow(x, branch, dilation) for branch in layer.children())
    torch.testing.assert_close(layer(x), expected)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_it_gives_the_releases_numbers():
    # VITA-Group/SLaK, models/SLaK.py: ReparamLargeKernelConv(8, 8, 13, 1, 8, small_kernel=5, Decom=True), its
    # DepthWiseConv2dImplicitGEMM replaced by nn.Conv2d, use_sync_bn = False
    y = filled(SLaK(Place(8, 13, 5)).double())(wave((2, 8, 9, 7), 100.0))
    got = [y[0, 0, 0, 0], y[0, 3, 4, 2], y[1, 5, 8, 6], y[1, 7, 0, 3], y.sum(), y.square().sum()]
    expected = [0.39892943379703705, 2.8995476730438994, 0.8809102504062294, 0.7875428874501048]
    expected += [1568.1544461273384, 12557.631498896615]
    torch.testing.assert_close(torch.stack(got), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "strips"), [(51, [(51, 5), (5, 51)]), ((9, 3), [(9, 3), (5, 3)]), (5, [(5, 5)])])
def test_merged_it_is_two_strips_or_one_square(size, strips):
    layer = SLaK(Place(8, size, 3, side=7))
    layer.reparameterize()
    assert [each.kernel_size for each in layer.modules() if isinstance(each, DepthwiseConv2d)] == strips
    assert SLaK.multiply_adds(Place(8, size, 3, side=7)) == 8 * sum(taps_on_map(7, strip) for strip in strips)


def test_a_square_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"small_kernel \(7, 7\) does not fit into kernel_size \(13, 5\)"):
        SLaK(Place(8, 13, 7))


@torch.no_grad()
def test_a_merge_that_was_refused_half_way_goes_on():
    layer = filled(SLaK(Place(8, 9, 5)).double())
    x = wave((1, 8, 5, 5), 3.0)
    expected = layer(x)
    hook = layer.wide.bn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"block\.wide\.bn carries hooks"):
        layer.reparameterize("block")
    torch.testing.assert_close(layer(x), expected)
    hook.remove()
    layer.reparameterize()
    assert len(list(layer.children())) == 2
    torch.testing.assert_close(layer(x), expected)
