"""ShiftWise convolution: small filters whose outputs are moved and added, so that together they are long strips.

Paper: "ShiftwiseConv: Small Convolutional Kernel with Large Kernel Effect", https://arxiv.org/abs/2401.12736 (CVPR
2025). A shifted channel has S = ⌈M / k⌉ filters k×k. What a filter gives, moved along a row by a multiple of k, is a
piece of a strip k×M, and moved along a column one of a strip M×k; the same filters make both, in other orders:

    wide(x)[h, w] = Σ_r Σ_i (W_a(r, i) * x)[h, w + k i + k // 2 - M // 2],  a(r, ·) an order of the S filters
    high(x)[h, w] = Σ_r Σ_i (W_b(r, i) * x)[h + k i + k // 2 - M // 2, w],  b(r, ·) another one
    square(x)     = Σ_r W_c(r) * x,                                         c(r) one of the filters

with r = 1…4, orders drawn once for each channel, and each W the sum of two filters (the "paths"). The other channels,
the "ghosts", 23 % or a few more, are left as they are:

    y = BN([x_s + BN(wide(x_s)) + BN(high(x_s)) + BN(square(x_s)), x_g])

To move and add what filters give is one convolution with the filters side by side, and that is how it is computed here,
in training too: as k×M and M×k, without the maps of S times the channels. The weights are dense: the paper's sparsity,
filters that are pruned and grown again, is a way to train, and left out.

Other than in the release, the ghosts are the last channels instead of drawn ones, which is the same between 1×1
convolutions; the last filter of a strip is cut where k does not divide M, so that strips are centred and M long, while
the release's reach up to k - 1 further on the right and below (nothing lies there on maps up to M // 2 + 1); and the
last batch norm, the release's first layer behind this one, belongs to it.
"""

import torch
from torch import Tensor, nn

from native import DepthwiseConv2d, depthwise_conv2d
from replk_lightning.models.reparam import KernelSize, as_affine, centred, odd_pair, require_batch_norm, small_pair
from replk_lightning.models.rewriting import plain_state, settle, with_parameters
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map

PATHS, ORDERS, GHOSTS = 2, 4, 0.23  # the release's


class ShiftWise(SpatialLayer):
    """The layer above; merged y = [DW_k×M(x_s) + bias + DW_M×k(x_s) + bias, DW_1×1(x_g) + bias].

    kernel_size is M, the strips' long side; small_kernel is k of the filters that make them, None for 5, or M where
    that is smaller. The release's first nets have k = 5, the paper's 3.

    Raises:
        ValueError: A size is even or two numbers that differ, k is larger than M, or there are less than 3 channels.
    """

    name = "shiftwise"
    title = "ShiftWise: M×k beside k×M, of k×k"
    paper = "ShiftwiseConv, https://arxiv.org/abs/2401.12736"
    merges_to = "two depthwise convolutions, M×k and k×M, on 77 % of the channels, and 1×1 on the others"
    kernel_sizes = (51, 49, 47, 13)
    small_kernel = 3

    orders: Tensor
    centres: Tensor
    high_reparam: DepthwiseConv2d
    wide_reparam: DepthwiseConv2d
    ghosts_reparam: DepthwiseConv2d

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.long, small = _sizes(place)
        self.dilation = place.dilation
        shifted, count = _shifted(place.channels), -(-self.long // small)
        if shifted == 0:
            raise ValueError(f'"shiftwise" shifts two of 3 channels or more, not of {place.channels}: use a wider net')
        self.split = [shifted, place.channels - shifted]
        bound = 1 / small  # as nn.Conv2d draws filters of so many taps
        self.filters = nn.Parameter(torch.empty(PATHS, shifted * count, small, small).uniform_(-bound, bound))
        # The same in all layers, whatever the seed. Kept with the weights, which mean nothing without them, and as
        # floats: averaging a net's integers (EMA) rounds some of them down.
        generator = torch.Generator().manual_seed(123)
        drawn = torch.rand(3, ORDERS, shifted, count, generator=generator, device="cpu").argsort(-1).to(self.filters)
        self.register_buffer("orders", drawn[:2].clone())
        self.register_buffer("centres", drawn[2, ..., :1].clone())
        self.wide_bn, self.high_bn, self.square_bn = (nn.BatchNorm2d(shifted) for _ in range(3))
        self.norm = nn.BatchNorm2d(place.channels)

    @property
    def merged(self) -> bool:
        """Whether `reparameterize()` has been called."""
        return hasattr(self, "high_reparam")

    def strips(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the three convolutions of C_s shifted channels: (C_s, 1, k, M), (C_s, 1, M, k), (C_s, 1, k, k)."""
        filters = self.filters.sum(0).unflatten(0, (self.split[0], -1))[None]  # (1, C_s, S, k, k)
        orders = (*self.orders, self.centres)
        rows, columns, square = (
            torch.take_along_dim(filters, order[..., None, None].long(), 2).sum(0) for order in orders
        )
        wide = rows.transpose(1, 2).flatten(2)[:, None, :, : self.long]
        high = columns.flatten(1, 2)[:, None, : self.long]
        return wide.contiguous(), high.contiguous(), square

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y, ghosts = x.split(self.split, dim=1)
        if self.merged:
            return torch.cat([self.high_reparam(y) + self.wide_reparam(y), self.ghosts_reparam(ghosts)], 1)
        wide, high, square = (depthwise_conv2d(y, weight, dilation=self.dilation) for weight in self.strips())
        y = y + self.wide_bn(wide) + self.high_bn(high) + self.square_bn(square)
        normed: Tensor = self.norm(torch.cat([y, ghosts], 1))
        return normed

    @plain_state()
    def reparameterize(self, name: str = "") -> None:
        """Replace filters and batch norms by two strips and a 1×1 in place; a second call does nothing.

        Raises ValueError: a norm carries hooks, which would vanish, is no batch norm, or keeps no running statistics.
        """
        if self.merged:
            return
        norms = "wide_bn", "high_bn", "square_bn", "norm"  # a parametrized layer has one more child
        for norm in norms:
            require_batch_norm(".".join(filter(None, (name, norm))), self.get_submodule(norm))
        training = self.training
        settle(self.eval())
        merged = self._folded()
        for part in ("filters", "orders", "centres", *norms):
            delattr(self, part)
        for part, conv in merged.items():
            self.add_module(part, conv)
        self.train(training)

    def _folded(self) -> dict[str, nn.Conv2d]:
        accurate = torch.promote_types(self.filters.dtype, torch.float32)
        inner = (as_affine(norm, accurate) for norm in (self.wide_bn, self.high_bn, self.square_bn))
        (wide_scale, wide_shift), (high_scale, high_shift), (square_scale, square_shift) = inner
        (scale, ghosts_scale), (shift, ghosts_shift) = (
            each.split(self.split) for each in as_affine(self.norm, accurate)
        )
        wide, high, square = (weight.to(accurate) for weight in self.strips())
        square = centred(_column(square_scale) * square, high.shape[-2:])
        itself = centred(torch.ones_like(_column(scale)), high.shape[-2:])
        high = _column(high_scale) * high + square + itself
        return {
            "high_reparam": self._conv(_column(scale) * high, scale * (high_shift + square_shift) + shift),
            "wide_reparam": self._conv(_column(scale * wide_scale) * wide, scale * wide_shift),
            "ghosts_reparam": self._conv(_column(ghosts_scale), ghosts_shift),
        }

    def _conv(self, weight: Tensor, bias: Tensor) -> nn.Conv2d:
        size, own = (weight.shape[-2], weight.shape[-1]), self.filters
        conv = DepthwiseConv2d(len(weight), size, dilation=self.dilation, device=own.device, dtype=own.dtype)
        return with_parameters(conv, weight, bias, [self])

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """Of the shifted channels the taps of both strips on the map, of the others one a pixel."""
        shifted, (long, small) = _shifted(place.channels), _sizes(place)
        taps = sum(taps_on_map(place.side, size, place.dilation) for size in ((long, small), (small, long)))
        return shifted * taps + (place.channels - shifted) * place.side**2


def _shifted(channels: int) -> int:
    return int(channels * (1 - GHOSTS)) // 2 * 2


def _sizes(place: Place) -> tuple[int, int]:
    long = _one("kernel_size", place.kernel_size)
    small = min(5, long) if place.small_kernel is None else _one("small_kernel", place.small_kernel)
    return long, small_pair(small, (long, long))[0]


def _one(name: str, size: KernelSize) -> int:
    height, width = odd_pair(name, size)
    if height != width:
        raise ValueError(f"{name} is {size}, but both strips are made of the same filters: use one number")
    return height


def _column(scale: Tensor) -> Tensor:
    return scale.reshape(-1, 1, 1, 1)
