"""What both detectors stand on: pictures of one size, and a timm net of any name under torchvision's feature pyramid.

Shapes: N pictures, H and W their sides, C channels of the pyramid.
"""

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import Format, nhwc_to
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from replk_lightning.models import ModelError, create_model


class Pyramid(nn.Module):
    """The maps of `body` at the given strides, made `channels` wide and joined top down, and coarser ones on top.

    Args:
        model: any timm name, this package's included.
        strides: of the maps that are taken: pixels of the picture for one of the map.
        channels: C.
        top: makes the coarser maps, from the coarsest one of the pyramid.
        options: passed to timm.

    Attributes:
        body: the feature extractor.
        out_channels: C (torchvision asks for it).

    (N, in_chans, H, W) → an ordered dictionary of maps (N, C, H / stride, W / stride), the finest first. Raises
    ModelError where the net has no map of one of the strides.
    """

    def __init__(self, model: str, strides: tuple[int, ...], channels: int, top: ExtraFPNBlock, **options: Any) -> None:
        super().__init__()
        with torch.device("meta"):  # only its maps' strides are wanted
            body: Any = create_model(model, features_only=True, **options)
        found = body.feature_info.reduction()
        missing = sorted(set(strides) - set(found))
        if missing:
            raise ModelError(f"{model} has maps of the strides {found} but none of {missing}, which this head needs")
        last = {stride: index for index, stride in enumerate(found)}
        taken = tuple(last[stride] for stride in strides)
        body = create_model(model, features_only=True, out_indices=taken, **options)
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), channels, top)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(N, in_chans, H, W) → maps by name."""
        maps = self.body(images)
        if getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC:  # as timm's Swin has them
            maps = [nhwc_to(each, Format.NCHW) for each in maps]
        return self.fpn(OrderedDict((str(index), each) for index, each in enumerate(maps)))


class Resize(GeneralizedRCNNTransform):
    """Pictures and targets to the size that a detector computes at, padded to one batch, and detections back.

    Args:
        train_sizes: in training, the short side becomes one of these, drawn for each picture.
        test_size: else it becomes this.
        max_size: the long side at most.

    Pictures come normalised; what pads them is 0, the mean.
    """

    def __init__(self, train_sizes: tuple[int, ...], test_size: int, max_size: int) -> None:
        super().__init__(test_size, max_size, image_mean=[], image_std=[])
        self.train_sizes = list(train_sizes)

    def torch_choice(self, k: list[int]) -> int:
        """A training size; torchvision asks with the sizes of testing."""
        return super().torch_choice(self.train_sizes)

    def normalize(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image
