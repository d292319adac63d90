"""What a RepLKNet with any spatial layer costs, and how wide it may be to cost as much as another: by arithmetic."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any

from replk_lightning.models.reparam import KernelSize
from replk_lightning.models.spatial import Place, get_spatial


def replknet_multiply_adds(
    spatial: str,
    dims: Sequence[int],
    depths: Sequence[int],
    img_size: int,
    kernel_sizes: Sequence[KernelSize],
    small_kernel: KernelSize = 5,
) -> int:
    """Multiply-adds of a merged RepLKNet without its head, for one picture of img_size².

    As others count, but for the spatial layers, whose taps on padding are left out: see `SpatialLayer.multiply_adds`.
    """
    halved = -(-img_size // 2)
    sides = [-(-img_size // 2 ** (2 + stage)) for stage in range(len(dims))]
    first = dims[0]
    total: int = first * (3 * 9 + 9 + first) * halved**2 + 9 * first * sides[0] ** 2
    for dim, depth, side, kernel_size in zip(dims, depths, sides, kernel_sizes, strict=True):
        pointwise = 10 * dim**2 * side**2  # two around the spatial layer, and the feed-forward's two of four times C
        total += depth * (pointwise + _layer(spatial, Place(dim, kernel_size, small_kernel, side=side)))
    for (dim, side), (wider, smaller) in pairwise(zip(dims, sides, strict=True)):
        total += dim * wider * side**2 + 9 * wider * smaller**2
    return total


@cache
def _layer(spatial: str, place: Place) -> int:
    return get_spatial(spatial).multiply_adds(place)


def dims_of_cost(
    target: int,
    multiple: int,
    spatial: str,
    dims: Sequence[int],
    depths: Sequence[int],
    img_size: int,
    **options: Any,
) -> tuple[int, ...]:
    """`dims` times the factor with which the net costs nearest to `target` multiply-adds, in multiples of `multiple`.

    `options` are the other arguments of `replknet_multiply_adds`. The factor is one for all stages; then each stage is
    rounded up or down so that the cost comes nearest.
    """

    def off(widths: Sequence[int]) -> int:
        return abs(replknet_multiply_adds(spatial, widths, depths, img_size, **options) - target)

    def rounded(factor: float, more: Sequence[int]) -> tuple[int, ...]:
        pairs = zip(dims, more, strict=True)
        return tuple(max(1, int(dim * factor / multiple) + extra) * multiple for dim, extra in pairs)

    steps = 2 * max(dims) // multiple
    factors = [2 * step / steps for step in range(1, steps + 1)]
    nearest = min(factors, key=lambda factor: off([max(1, round(dim * factor / multiple)) * multiple for dim in dims]))
    near = [factor for factor in factors if abs(factor / nearest - 1) < 0.03]
    return min((rounded(factor, more) for factor in near for more in product((0, 1), repeat=len(dims))), key=off)
