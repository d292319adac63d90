"""UniRepLKNet's layer, the Dilated Reparam Block: K×K beside small kernels whose taps lie apart, merged into one K×K.

Paper: "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
Recognition", https://arxiv.org/abs/2311.15599, Sec. 3.1, Guideline 2:
y = BN(DW_K×K(x)) + Σ_i BN_i(DW_k_i×k_i(x; dilation r_i)).

A k×k kernel of dilation r is a K×K one with zeros between and around its taps, where r (k - 1) + 1 ≤ K.
"""

from torch import Tensor

from native import DepthwiseConv2d
from replk_lightning.models.reparam import ConvBN, KernelSize, merge_branches, odd_pair, sum_of_branches
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    1: (),
    3: (),
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
}
"""(k_i, r_i) of the branches beside K×K as the release has them, which starts at 5; `branches_beside` goes on."""


class UniRepLKNet(SpatialLayer):
    """The Dilated Reparam Block: kernel_size K, square; its branches come from K alone, so small_kernel is not used.

    Each branch has its own batch norm. The release's block has one more behind their sum, which RepLKNet's has not;
    without it the layers differ from "replk" in their branches only.
    """

    name = "unireplknet"
    title = "UniRepLKNet: K×K beside dilated branches"
    paper = "UniRepLKNet, https://arxiv.org/abs/2311.15599"
    merges_to = "one depthwise K×K convolution"
    kernel_sizes = (13, 13, 13, 13)

    large_reparam: DepthwiseConv2d

    def __init__(self, place: Place) -> None:
        super().__init__()
        size = _square(place.kernel_size)
        self.large = ConvBN(DepthwiseConv2d(place.channels, size, dilation=place.dilation, bias=False))
        for k, r in branches_beside(size):
            conv = DepthwiseConv2d(place.channels, k, dilation=r * place.dilation, bias=False)
            self.add_module(f"small_{k}_{r}", ConvBN(conv))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return sum_of_branches(self, x)

    def reparameterize(self, name: str = "") -> None:
        """Merge all branches into one convolution, `large_reparam`, in place; a second call does nothing."""
        if not hasattr(self, "large_reparam"):
            merge_branches(self, "large_reparam", [branch for branch, _ in self.named_children()], name)

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps of K×K on the map."""
        return place.channels * taps_on_map(place.side, _square(place.kernel_size), place.dilation)


def branches_beside(size: int) -> tuple[tuple[int, int], ...]:
    """(k_i, r_i), kernel and dilation, of the branches beside K×K, K = `size`, odd; none at 1 and 3.

    To 15 the release's. From 17 on 5×5; at dilation 2 the largest odd kernel that fits; and 3×3 at dilations
    ⌊(K - 1) / 4⌋, ⌊(K - 1) / 3⌋ and (K - 1) / 2 - 1. At 17, the release's largest, these are its own.
    """
    if size in BRANCHES:
        return BRANCHES[size]
    reach = size // 2
    return (5, 1), (reach // 2 * 2 + 1, 2), (3, reach // 2), (3, 2 * reach // 3), (3, reach - 1)


def _square(kernel_size: KernelSize) -> int:
    height, width = odd_pair("kernel_size", kernel_size)
    if height != width:
        raise ValueError(f'"unireplknet" is for square kernels only, not {kernel_size}: use {height} or {width}')
    return height
