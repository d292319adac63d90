"""PeLK's layer: a depthwise K×K convolution with a filter that is fine in its centre and ever coarser around it.

Paper: "PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution", https://arxiv.org/abs/2403.07589,
Sec. 4.1 and 4.2: y(p) = BN(Σ_q w(q) (x(p + q) + h(q))) + BN(DW_k×k(x))(p), where w is w_θ(a, b) all over a region a, b.

The sum runs over all of the filter, and h does not depend on p, so that h adds Σ_q w(q) h(q) to a channel everywhere,
near the borders too, where x is 0: a bias. Merging is exact; in training the batch norm takes the bias away, and h has
no gradient.
"""

from itertools import count

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from native import DepthwiseConv2d, depthwise_conv2d
from native.geometry import Pair
from replk_lightning.models.reparam import odd_pair
from replk_lightning.models.rewriting import plain_state, refuse_hooks
from replk_lightning.models.spatial.base import Place
from replk_lightning.models.spatial.replk import RepLK


def sharing_grid(size: int) -> list[int]:
    """S: how many of a line's `size` taps share each weight: 1 in the centre, then 2, 4, 8 …, at the ends what is left.

    Equation 2 with m = 2, cut as in Fig. 1 and Table 6. The centre has 5 taps, above 51 it has 7, as PeLK and PeLK-101
    have (Sec. 4.4).
    """
    fine, left = 2 if size <= 51 else 3, size // 2
    half: list[int] = []
    for distance in count(1):
        if left == 0:
            break
        half.append(min(left, 2 ** max(0, distance - fine)))
        left -= half[-1]
    return [*reversed(half), 1, *half]


class PeripheralConv2d(nn.Module):
    """A depthwise K_h×K_w convolution whose taps share weights, and the positional embedding of its taps.

    Args:
        channels: C; input and output (N, C, H, W).
        kernel_size: (K_h, K_w), odd.
        dilation: Between taps.

    Parameters: weight w_θ (C, 1, k'_h, k'_w), k' as long as the sharing grid, and embedding h (1, 1, K_h, K_w), one for
    all channels; both start from a normal distribution cut at ±2, with ConvNeXt's deviation.
    """

    def __init__(self, channels: int, kernel_size: Pair, dilation: int = 1):
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        rows, columns = map(sharing_grid, kernel_size)
        self.weight = nn.Parameter(torch.empty(channels, 1, len(rows), len(columns)))
        self.embedding = nn.Parameter(torch.empty(1, 1, *kernel_size))
        trunc_normal_(self.weight, std=0.02)
        trunc_normal_(self.embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        kernel, bias = self.kernel_and_bias()
        return depthwise_conv2d(x, kernel, bias, dilation=self.dilation)

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """Weight (C, 1, K_h, K_w) and bias (C,) of the plain convolution that this one is."""
        rows, columns = map(sharing_grid, self.kernel_size)
        kernel = _spread(_spread(self.weight, columns, 3), rows, 2)
        return kernel, (kernel * self.embedding).sum((1, 2, 3))

    @plain_state()
    def plain(self) -> DepthwiseConv2d:
        """That convolution; it learns if any parameter of this one does."""
        kernel, bias = self.kernel_and_bias()
        conv = DepthwiseConv2d(
            len(kernel), self.kernel_size, dilation=self.dilation, device=kernel.device, dtype=kernel.dtype
        )
        conv.weight.copy_(kernel)
        assert conv.bias is not None
        conv.bias.copy_(bias)
        return conv.requires_grad_(any(parameter.requires_grad for parameter in self.parameters()))

    def extra_repr(self) -> str:
        """What a printed model shows."""
        return f"{len(self.weight)}, kernel_size={self.kernel_size}, dilation={self.dilation}"


class PeLK(RepLK):
    """RepLKNet's layer with a peripheral convolution; kernel_size K, small_kernel k, which is 5 in the paper (Sec. 3).

    The norms are RepLKNet's, and so is the cost: shared weights save parameters, the filter that they make is dense.
    Two things of the paper's nets are not in it: they convolve 3/8 of the channels and pass on the others (Sec. 4.3),
    and all blocks of a stage share one h.
    """

    name = "pelk"
    title = "PeLK: K×K of shared weights beside k×k"
    paper = "PeLK, https://arxiv.org/abs/2403.07589"
    merges_to = "one depthwise K×K convolution"
    kernel_sizes = (101, 69, 67, 13)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        kernel_size = odd_pair("kernel_size", place.kernel_size)
        self.lkb_origin.add_module("conv", PeripheralConv2d(place.channels, kernel_size, place.dilation))

    def reparameterize(self, name: str = "") -> None:
        """Merge as `LargeKernelConv` does, with the shared weights spread over K×K and h as a bias."""
        if self.merged:
            return
        refuse_hooks(".".join(filter(None, (name, "lkb_origin"))), self.lkb_origin)
        shared: nn.Module = self.lkb_origin.get_submodule("conv")
        if isinstance(shared, PeripheralConv2d):
            self.lkb_origin.add_module("conv", shared.plain())
        try:
            super().reparameterize(name)
        except ValueError:
            self.lkb_origin.add_module("conv", shared)
            raise


def _spread(weight: Tensor, grid: list[int], axis: int) -> Tensor:
    # several times as fast as an index, whose gradient adds element by element; torch.fx cannot go through a split
    lines = [weight.narrow(axis, line, 1).repeat_interleave(times, axis) for line, times in enumerate(grid)]
    return torch.cat(lines, axis)
