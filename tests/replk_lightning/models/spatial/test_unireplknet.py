"""UniRepLKNet's layer: its equation tap by tap, the release's numbers, branches that fit, kernels it cannot have."""

import pytest
import torch
from torch.nn.functional import pad

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.unireplknet import BRANCHES, UniRepLKNet, branches_beside

RELEASE = {
    5: (2.5874812951, -1.9443933510, 3.4273472052, 10552.40171984, 105.26258825),
    7: (2.8272876577, -0.7372008101, -2.9960072613, 23073.76258356, 292.38587834),
    9: (-2.9171478836, 1.3482112715, 7.6297276633, 19646.65002607, 277.73939567),
    11: (-2.3328315519, -0.5364948877, 3.4993700722, 31282.69393407, 566.74483031),
    13: (9.4484697825, 6.0455795528, 1.2727175599, 65738.19209904, 877.94754345),
    15: (-3.6137987916, 3.7694273425, 2.0083024967, 27235.38396233, 564.57641329),
    17: (-7.7654767698, 1.3778004537, -9.9880340281, 36709.27850705, 1031.22681201),
}
"""Of DilatedReparamBlock (AILab-CVC/UniRepLKNet, unireplknet.py), by K, on `filled` and `picture`, in float64:
y[0, 0, 0, 0], y[0, 2, 4, 5], y[1, 3, 8, 10], the sum of y², and that of the squares of its merged kernel."""


def wave(count, step, start):
    return torch.sin(torch.arange(count, dtype=torch.float64) * step + start)


def picture():
    return torch.sin(torch.arange(2 * 4 * 9 * 11, dtype=torch.float64) ** 2 / 50).reshape(2, 4, 9, 11)


def filled(size, dilation=1):
    """The layer for four channels with numbers of a closed formula in place of its own, and its branches by (k, r)."""
    layer = UniRepLKNet(Place(4, size, dilation=dilation)).double().eval()
    branches = {(size, 1): layer.large}
    branches |= {(k, r): layer.get_submodule(f"small_{k}_{r}") for k, r in branches_beside(size)}
    for (k, r), (conv, bn) in branches.items():
        conv.weight.data = wave(4 * k * k, 0.7, k + r).reshape(4, 1, k, k)
        bn.weight.data, bn.bias.data = 1 + wave(4, 1, k) / 2, wave(4, 2, r)
        bn.running_mean, bn.running_var = wave(4, 3, k - r), 1 + wave(4, 4, k * r) / 2
    return layer, branches


@pytest.mark.parametrize("size", RELEASE)
def test_it_computes_the_releases_numbers(size):
    layer, _ = filled(size)
    for _ in ("as trained", "merged"):
        y = layer(picture())
        found = [y[0, 0, 0, 0], y[0, 2, 4, 5], y[1, 3, 8, 10], y.square().sum()]
        torch.testing.assert_close(torch.stack(found).tolist(), list(RELEASE[size][:4]), rtol=1e-9, atol=1e-9)
        layer.reparameterize()
    assert layer.large_reparam.weight.square().sum().item() == pytest.approx(RELEASE[size][4], rel=1e-10)


@pytest.mark.parametrize(("size", "dilation"), [(3, 1), (7, 1), (7, 2), (19, 1)])
def test_it_is_the_papers_equation_tap_by_tap(size, dilation):
    layer, branches = filled(size, dilation)
    x = picture()
    expected = torch.zeros_like(x)
    for (k, r), (conv, bn) in branches.items():
        step = r * dilation
        around = pad(x, [k // 2 * step] * 4)
        y = torch.zeros_like(x)
        for row in range(k):
            for column in range(k):
                shifted = around[..., row * step : row * step + 9, column * step : column * step + 11]
                y += conv.weight[:, :, row, column, None] * shifted
        scale, shift, mean, variance = (
            each[:, None, None] for each in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
        )
        expected += scale * (y - mean) / (variance + bn.eps).sqrt() + shift
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert [name for name, _ in layer.named_children()] == ["large_reparam"]


def test_every_odd_kernel_has_branches_that_fit_and_differ():
    assert branches_beside(1) == branches_beside(3) == ()
    assert branches_beside(13) == ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
    assert 17 not in BRANCHES
    assert branches_beside(17) == ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7))  # the rule gives the release's
    assert branches_beside(31) == ((5, 1), (15, 2), (3, 7), (3, 10), (3, 14))
    for size in range(1, 129, 2):
        branches = branches_beside(size)
        assert all(k % 2 and r * (k - 1) + 1 <= size for k, r in branches)
        assert len({r for _, r in branches}) == len(branches)


def test_a_kernel_that_is_not_square_is_refused():
    UniRepLKNet(Place(8, (7, 7)))
    with pytest.raises(ValueError, match=r"square kernels only, not \(7, 5\): use 7 or 5"):
        UniRepLKNet(Place(8, (7, 5)))
