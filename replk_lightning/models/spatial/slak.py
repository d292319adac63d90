"""SLaK's layer: two strips that cross, one high and one wide, and a small square beside them.

Paper: "More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity", https://arxiv.org/abs/2207.03620,
Sec. 3: y = BN(DW_K×5(x)) + BN(DW_5×K(x)) + BN(DW_5×5(x)). The weights are dense here: the paper's dynamic sparsity, by
which filters lose weights and grow others, is a way to train, and left out, as is what wider nets gain by it.
"""

from torch import Tensor

from native import DepthwiseConv2d
from replk_lightning.models.reparam import ConvBN, KernelSize, merge_branches, odd_pair, small_pair, sum_of_branches
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map

SHORT = 5
"""N of the paper, a strip's short side at every K."""


class SLaK(SpatialLayer):
    """y = BN(DW_K×N(x)) + BN(DW_N×K(x)) + BN(DW_k×k(x)), merged y = DW_K×N(x) + bias + DW_N×K(x) + bias.

    kernel_size is K, the strips' long side, or (K_h, K_w) for strips K_h×N and N×K_w; their short side N is 5, in a
    dimension where K is smaller K. small_kernel is k of the square, which is merged into the high strip; None for no
    square. The paper has k = N = 5. Where K is at most 5, both strips are K×K, and all is merged into one.

    Raises:
        ValueError: A size is even, or the square does not fit into the high strip.
    """

    name = "slak"
    title = "SLaK: K×5 beside 5×K and k×k"
    paper = "SLaK, https://arxiv.org/abs/2207.03620"
    merges_to = "two depthwise convolutions, K×5 and 5×K"
    kernel_sizes = (51, 49, 47, 13)

    def __init__(self, place: Place) -> None:
        super().__init__()
        high, wide = _strips(place.kernel_size)
        self.high = _branch(place, high)
        self.wide = _branch(place, wide)
        self.into = {"high_reparam": ["high", "wide"]} if high == wide else _INTO
        if place.small_kernel is None:
            return
        self.square = _branch(place, small_pair(place.small_kernel, high))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return sum_of_branches(self, x)

    def reparameterize(self, name: str = "") -> None:
        """Merge the square into the high strip, and each batch norm into its strip; a second call does nothing.

        Raises ValueError as `merge_branches` does.
        """
        for into, branches in self.into.items():
            left = [branch for branch in (*branches, "square") if hasattr(self, branch)]
            if left:
                merge_branches(self, into, left, name)

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps of both strips on the map."""
        strips = set(_strips(place.kernel_size))
        return place.channels * sum(taps_on_map(place.side, strip, place.dilation) for strip in strips)


_INTO = {"high_reparam": ["high"], "wide_reparam": ["wide"]}


def _strips(kernel_size: KernelSize) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = odd_pair("kernel_size", kernel_size)
    return (height, min(SHORT, width)), (min(SHORT, height), width)


def _branch(place: Place, kernel_size: tuple[int, int]) -> ConvBN:
    return ConvBN(DepthwiseConv2d(place.channels, kernel_size, dilation=place.dilation, bias=False))
