"""What segmenters and detectors stand on: some feature maps of a timm net of any name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Format, nhwc_to
from torch import Tensor, nn

from replk_lightning.models import ModelError, create_model

Choose = Callable[[Sequence[int]], Sequence[int]]
"""Strides of all the maps of a net → indices of those wanted, from fine to coarse; raises LookupError."""


class Backbone(nn.Module):
    """Some maps of a timm net, (N, C, h, w) whatever the net's own layout.

    Args:
        model: timm's name.
        choose: which maps; see `Choose` and `last_of_each`.
        options: passed to `timm.create_model`.

    Attributes:
        net: timm's feature extractor.
        channels: of the maps.

    Raises ModelError where the net lacks a map.
    """

    def __init__(self, model: str, choose: Choose, **options: Any) -> None:
        super().__init__()
        with torch.device("meta"):  # only its maps' strides are wanted
            probe: Any = create_model(model, features_only=True, **options)
        strides: list[int] = probe.feature_info.reduction()
        try:
            indices = tuple(choose(strides))
        except LookupError:
            raise ModelError(f"{model} lacks a feature map that this head needs: it has strides {strides}.") from None
        net: Any = create_model(model, features_only=True, out_indices=indices, **options)
        self.net = net
        self.channels: list[int] = net.feature_info.channels()
        self.layout = Format(getattr(net, "output_fmt", Format.NCHW))  # timm's Swin has NHWC

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) → one (N, C, h, w) a map, from fine to coarse."""
        maps = self.net(images)
        return [nhwc_to(each, Format.NCHW) for each in maps] if self.layout == Format.NHWC else maps

    def forward(self, images: Tensor) -> Any:
        """As `maps`."""
        return self.maps(images)


class LastMap(nn.Module):
    """The coarsest map of a backbone: (N, in_chans, H, W) → (N, C, h, w)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Images → the map."""
        coarsest: Tensor = self.backbone.maps(images)[-1]
        return coarsest


def last_of(strides: Sequence[int], stride: int) -> int:
    """Index of the last map of `stride`; raises LookupError."""
    found = [index for index, its in enumerate(strides) if its == stride]
    return found[-1]


def last_of_each(wanted: Sequence[int]) -> Choose:
    """Chooses the last map of each stride of `wanted`."""
    return lambda strides: [last_of(strides, stride) for stride in wanted]
