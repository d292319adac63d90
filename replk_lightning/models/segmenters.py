"""Semantic segmentation on any timm backbone: UperNet (Tables 5, 7 and 8) and DeepLabv3+ (Tables 3 and 4).

The heads are transformers' and segmentation_models_pytorch's; imported where they are built, for they take seconds.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replk_lightning.models.backbone import Backbone, last_of, last_of_each
from replk_lightning.recipes import SegmentRecipe

DETAIL = 4
"""Stride of the map that DeepLabv3+ takes its details from."""

PYRAMID = (4, 8, 16, 32)
"""Strides of UperNet's maps."""


class Logits(NamedTuple):
    """What a segmenter gives: both (N, num_classes, H, W) at the size of the images.

    Attributes:
        main: of the decode head.
        auxiliary: of the auxiliary head; None in eval mode or where there is none.
    """

    main: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """A backbone, a decode head and an auxiliary head that helps in training only.

    Attributes:
        backbone: gives the maps.
        decode_head, auxiliary_head: lists of maps → logits at some stride.
        align_corners: how logits are brought to the images' size.
    """

    def __init__(
        self, backbone: Backbone, decode_head: nn.Module, auxiliary_head: nn.Module | None, align_corners: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.align_corners = align_corners

    def forward(self, images: Tensor) -> Logits:
        """(N, in_chans, H, W) → logits (N, num_classes, H, W)."""
        maps = self.backbone(images)
        size = images.shape[-2:]
        auxiliary = self.auxiliary_head(maps) if self.auxiliary_head is not None and self.training else None
        return Logits(
            self._resize(self.decode_head(maps), size), None if auxiliary is None else self._resize(auxiliary, size)
        )

    def _resize(self, logits: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)


def upernet(
    model: str,
    num_classes: int,
    *,
    channels: int = 512,
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    **options: Any,
) -> Segmenter:
    """UperNet: pyramid pooling of 1, 2, 3 and 6 bins and an FPN over strides 4, 8, 16 and 32; an FCN head on stride 16.

    Args:
        model, options: of the backbone, for timm.
        channels, auxiliary_channels: widths of the two heads.
        dropout: of whole channels before both classifiers.
        align_corners: in every interpolation.

    Parameters and multiply-adds, without the auxiliary head, are those of Tables 5, 7 and 8 to 1 %.
    """
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    backbone = Backbone(model, last_of_each(PYRAMID), **options)
    config = UperNetConfig(hidden_size=channels, auxiliary_channels=auxiliary_channels)
    config.num_labels = num_classes
    decode, auxiliary = UperNetHead(config, backbone.channels), UperNetFCNHead(config, backbone.channels, in_index=2)
    decode.align_corners = decode.psp_modules.align_corners = align_corners
    for head in (decode, auxiliary):
        setattr(head, "classifier", nn.Sequential(nn.Dropout2d(dropout), head.classifier))  # noqa: B010
    return Segmenter(backbone, decode, auxiliary, align_corners)


class DeepLabHead(nn.Module):
    """DeepLabv3+'s decode head: separable ASPP on the last map, details from the first, and a classifier.

    Args:
        in_channels: of the first and the last map; the first has stride 4, the last 8 (or 16).
        channels: width of the head.
        atrous_rates: of the three dilated branches.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        num_classes: int,
        channels: int,
        atrous_rates: Sequence[int],
        output_stride: Literal[8, 16],
        dropout: float,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

        detail, last = in_channels
        # the decoder finds the detail at place 2 of an encoder's five maps and ASPP's input at the end
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=(0, 0, detail, 0, 0, last),
            encoder_depth=5,
            out_channels=channels,
            atrous_rates=atrous_rates,
            output_stride=output_stride,
            aspp_separable=True,
            aspp_dropout=0.0,
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps from fine to coarse → logits (N, num_classes, h, w) at stride 4."""
        logits: Tensor = self.classifier(self.decoder([maps[0]] * 3 + [maps[-1]]))
        return logits


class FCNHead(nn.Module):
    """One 3×3 convolution and a classifier on the map at `index`."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, index: int, dropout: float) -> None:
        super().__init__()
        self.index = index
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps → logits (N, num_classes, h, w)."""
        logits: Tensor = self.layers(maps[self.index])
        return logits


def deeplabv3plus(
    model: str,
    num_classes: int,
    *,
    channels: int = 512,
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    output_stride: Literal[8, 16] = 8,
    **options: Any,
) -> Segmenter:
    """DeepLabv3+ on a backbone that honours `output_stride`, with an FCN head on its last map but one.

    Args:
        model, options: of the backbone, for timm; beyond `output_stride`, strides become dilations.
        channels, auxiliary_channels: widths of the two heads.
        dropout: of whole channels before both classifiers.
        align_corners: where logits are brought to the images' size.

    Images' sides are multiples of 8 (of 16 at that stride).
    """

    def choose(strides: Sequence[int]) -> list[int]:
        if strides[-1] != output_stride:
            raise LookupError
        return [last_of(strides, DETAIL), len(strides) - 2, len(strides) - 1]

    backbone = Backbone(model, choose, output_stride=output_stride, **options)
    first, middle, last = backbone.channels
    head = DeepLabHead((first, last), num_classes, channels, (12, 24, 36), output_stride, dropout)
    auxiliary = FCNHead(middle, num_classes, auxiliary_channels, index=1, dropout=dropout)
    return Segmenter(backbone, head, auxiliary, align_corners)


def create_segmenter(
    model: str, recipe: SegmentRecipe, num_classes: int, in_chans: int = 3, **options: Any
) -> Segmenter:
    """The segmenter that `recipe` names, on timm's `model` with `options`; raises ModelError."""
    build = upernet if recipe.head == "upernet" else deeplabv3plus
    return build(
        model,
        num_classes,
        channels=recipe.channels,
        auxiliary_channels=recipe.auxiliary_channels,
        dropout=recipe.head_dropout,
        align_corners=recipe.align_corners,
        in_chans=in_chans,
        **options,
    )
