"""What the spatial layer of a block is: where it stands, what it costs, which papers' there are."""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import nn

from native.geometry import pair
from native.layers import taps_on_pixels
from replk_lightning.models.reparam import KernelSize


@dataclass(frozen=True)
class Place:
    """Where in a net a spatial layer stands.

    Args:
        channels: C of its input and output, (N, C, H, W).
        kernel_size: K or (K_h, K_w), odd; each layer says what it makes of it.
        small_kernel: k of branches that train beside the large kernel and are merged into it, for layers that have
            them; None for none.
        dilation: of everything in the layer, where a net keeps its strides for dense prediction.
        side: H and W of the map for pictures of the net's `img_size`; only "global" depends on it.
    """

    channels: int
    kernel_size: KernelSize
    small_kernel: KernelSize | None = None
    dilation: int = 1
    side: int = 56


class SpatialLayer(nn.Module):
    """The layer of a block that mixes places, (N, C, H, W) → (N, C, H, W): all else in a block is 1×1.

    A subclass with a `name` is an option of RepLKNet, `spatial=name`, as soon as its file is imported; those in this
    folder always are. Its constructor takes a `Place` and ends in a norm, as a block's next layer is an activation. A
    layer of branches that are fewer in inference has `reparameterize(name)`, which
    `timm.utils.reparameterize_model` calls on every module that has it, and does that by `merge_branches`; by names
    that end in `_reparam`, what is merged is known in files.

    Attributes:
        name: of the option.
        title: of the layer, for tables.
        paper: title and address.
        merges_to: what is left of it for inference.
        kernel_sizes: K of RepLKNet's four stages as its paper has them, or nearest to them.
        small_kernel: k likewise, for layers that have one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    merges_to: ClassVar[str]
    kernel_sizes: ClassVar[tuple[int, ...]]
    small_kernel: ClassVar[int] = 5

    known: ClassVar[dict[str, type["SpatialLayer"]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Register a subclass that has a name of its own."""
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            SpatialLayer.known[cls.name] = cls

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """Of the merged layer for one map of place.side², as the sum over outputs of the taps that fall on the map.

        Taps on padding, which others count too, are left out: at 31×31 on 16² they are three of four.
        """
        raise NotImplementedError


def taps_on_map(side: int, kernel_size: KernelSize, dilation: int = 1) -> int:
    """Taps of a filter (K_h, K_w) that fall on a map of side², summed over its side² outputs; stride 1, "same"."""
    height, width = pair("kernel_size", kernel_size)
    return _along(side, height, dilation) * _along(side, width, dilation)


@cache
def _along(side: int, kernel: int, dilation: int) -> int:
    # a dilated line is `dilation` lines of pixels, each under the filter without gaps
    lines = (len(range(first, side, dilation)) for first in range(dilation))
    return sum(taps_on_pixels(pixels, kernel) for pixels in lines)
