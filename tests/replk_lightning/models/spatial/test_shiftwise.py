"""ShiftWise's strips beside maps that are moved and added, and the release's numbers."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.functional import batch_norm, conv2d, pad
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from replk_lightning.models.spatial import Place
from replk_lightning.models.spatial.shiftwise import ShiftWise


def wave(shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.37 + phase).reshape(shape)


@torch.no_grad()
def filled(layer):
    """Weights, norms and orders from formulas, in the order in which the release has them."""
    layer = layer.double().eval()
    weights = list(layer.filters)
    for norm in (layer.wide_bn, layer.high_bn, layer.square_bn, layer.norm):
        weights += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    for i, each in enumerate(weights):
        each.copy_(wave(each.shape, i))
    for norm in (layer.wide_bn, layer.high_bn, layer.square_bn, layer.norm):
        norm.running_var += 1.5
    orders, channels, count = layer.orders.shape[1:]
    order, channel, place = torch.meshgrid(*map(torch.arange, (orders, channels, count)), indexing="ij")
    layer.orders.copy_(torch.stack([place + order + channel, place + 5 + 2 * order + channel]) % count)
    layer.centres.copy_((channel + order // 2)[..., :1] % count)
    return layer


def moved(x, weight, down, right, dilation):
    """(N, C, H, W), filters (C, 1, k, k): y[h, w] = (weight * x)[h + down, w + right]."""
    far, reach = dilation * 12, dilation * (weight.shape[-1] // 2)
    y = conv2d(pad(x, (far,) * 4), weight, dilation=dilation, groups=x.shape[1])
    rows, columns = (far - reach + dilation * by for by in (down, right))
    return y[:, :, rows : rows + x.shape[2], columns : columns + x.shape[3]]


def slow(layer, x, long, small, dilation):
    """Each filter's map moved and added, a channel's orders one after the other."""
    count, shifted = -(-long // small), layer.orders.shape[2]
    filters = layer.filters.sum(0).reshape(shifted, count, 1, small, small)
    inside, channels = x[:, :shifted], torch.arange(shifted)
    sums = [torch.zeros_like(inside) for _ in range(3)]
    for order in range(4):
        for place in range(count):
            at = small * place + small // 2 - long // 2
            kept = torch.arange(small) + small * place < long
            rows, columns = (filters[channels, layer.orders[which, order, :, place].long()] for which in (0, 1))
            sums[0] += moved(inside, rows * kept, 0, at, dilation)
            sums[1] += moved(inside, columns * kept[:, None], at, 0, dilation)
        sums[2] += moved(inside, filters[channels, layer.centres[order, :, 0].long()], 0, 0, dilation)
    norms = (layer.wide_bn, layer.high_bn, layer.square_bn)
    y = inside + sum(each(part) for each, part in zip(norms, sums, strict=True))
    norm = layer.norm
    return batch_norm(
        torch.cat([y, x[:, shifted:]], 1), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


@pytest.mark.parametrize(
    ("long", "small", "channels", "dilation", "side"),
    [(9, 3, 8, 1, 12), (13, 5, 8, 1, 11), (13, None, 18, 2, 9), (5, 5, 18, 1, 4), (3, None, 8, 2, 5), (7, 1, 34, 1, 1)],
)
@torch.no_grad()
def test_it_is_the_papers_sum_of_moved_maps_merged_or_not(long, small, channels, dilation, side):
    layer = filled(ShiftWise(Place(channels, long, small, dilation, side)))
    x = wave((2, channels, side, side + 2), 50.0)
    expected = slow(layer, x, long, small or min(5, long), dilation)
    torch.testing.assert_close(layer(x), expected)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected)
    # 77 % of the channels, even
    assert [len(each.weight) for each in layer.children()] == {8: [6, 6, 2], 18: [12, 12, 6], 34: [26, 26, 8]}[channels]


# lidc54/shift-wiseConv, backbones/SW_v2_unirep.py: Block's norm(large_kernel(x)), with AddShift_mp_module of
# shiftadd/ops/ops_py/add_shift.py and the loops of shiftadd/ops/src/addshift_kernel_vmp.cu in Python, the orders of
# `filled`, the first channels shifted. On a map of 7×6 strips of 13 reach as far as the release's of 15.
@pytest.mark.parametrize(
    ("long", "small", "height", "width", "expected"),
    [
        (9, 3, 11, 8, [10.416005119321667, 3.3379919756346887, -0.6768583417380625, -1.609853855443601,
                       114.76853813242437, 5408.135562821044]),
        (13, 5, 7, 6, [-11.314658749463897, 11.655794091080194, -2.1904043101277333, -1.2568090997888073,
                       106.14343106859829, 56905.52746463248]),
    ],
)  # fmt: skip
@torch.no_grad()
def test_it_gives_the_releases_numbers(long, small, height, width, expected):
    y = filled(ShiftWise(Place(8, long, small)))(wave((1, 8, height, width), 100.0))
    some = [y[0, 0, 0, 0], y[0, 2, height - 1, 1], y[0, 4, 3, width - 1], y[0, 7, 2, 2], y.sum(), y.square().sum()]
    torch.testing.assert_close(torch.stack(some), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_orders_are_permutations_that_seeds_do_not_change_and_averages_keep():
    layer = ShiftWise(Place(16, 51, 3))
    assert torch.equal(layer.orders.sort(-1).values, torch.arange(17.0).expand(2, 4, 12, 17))
    assert layer.orders.unique(dim=2).shape[2] == 12
    torch.manual_seed(5)
    other = ShiftWise(Place(16, 51, 3))
    assert torch.equal(layer.orders, other.orders)
    assert torch.equal(layer.centres, other.centres)
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9999), use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(layer)
    assert torch.equal(averaged.module.orders, layer.orders)


def test_in_channels_last_and_bf16_it_is_the_same_and_a_copy_is_merged_alone():
    torch.manual_seed(0)
    layer = ShiftWise(Place(16, 13, 3)).eval()
    x = torch.randn(2, 16, 9, 7)
    expected = layer(x)
    merged = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    merged.reparameterize()
    assert not layer.merged
    torch.testing.assert_close(merged(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.1, atol=0.1)
        torch.testing.assert_close(merged(x).float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("size", "small", "message"),
    [
        ((13, 9), 3, r"kernel_size is \(13, 9\), but both strips are made of the same filters: use one number"),
        (3, 5, "small_kernel .* does not fit into kernel_size"),
        (12, 3, "kernel_size is 12, but only odd sizes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size, small, message):
    with pytest.raises(ValueError, match=message):
        ShiftWise(Place(8, size, small))


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match='"shiftwise" shifts two of 3 channels or more, not of 2: use a wider net'):
        ShiftWise(Place(2, 13, 3))


def test_parametrized_filters_become_plain():
    layer = weight_norm(ShiftWise(Place(8, 9, 3)).eval(), "filters")
    x = torch.randn(2, 8, 9, 7)
    expected = layer(x)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("norm", [BatchNormAct2d(6), nn.GroupNorm(1, 6)])
def test_other_norms_are_not_merged(norm):
    layer = ShiftWise(Place(8, 9, 3))
    layer.wide_bn = norm
    with pytest.raises(ValueError, match=f"block.wide_bn is a {type(norm).__name__}: only a batch norm"):
        layer.reparameterize("block")
    assert not layer.merged


def test_hooks_are_not_lost():
    layer = ShiftWise(Place(8, 9, 3))
    layer.square_bn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"block\.square_bn carries hooks"):
        layer.reparameterize("block")
    assert not layer.merged
