"""What both detectors stand on: pictures of one size, and a timm net of any name under torchvision's feature pyramid.

Shapes: N pictures, H and W their sides, C channels of the pyramid.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from replk_lightning.models.backbone import Backbone, last_of_each


class Pyramid(Backbone):
    """The maps of a timm net at the given strides, made `channels` wide and joined top down, and coarser ones on top.

    Args:
        model: any timm name, this package's included.
        strides: of the maps that are taken: pixels of the picture for one of the map.
        channels: C.
        top: makes the coarser maps, from the coarsest one of the pyramid.
        options: passed to timm.

    Attributes:
        out_channels: C (torchvision asks for it).

    (N, in_chans, H, W) → an ordered dictionary of maps (N, C, H / stride, W / stride), the finest first. Raises
    ModelError where the net has no map of one of the strides.
    """

    def __init__(self, model: str, strides: tuple[int, ...], channels: int, top: ExtraFPNBlock, **options: Any) -> None:
        super().__init__(model, last_of_each(strides), **options)
        self.fpn = FeaturePyramidNetwork(self.channels, channels, top)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(N, in_chans, H, W) → maps by name."""
        named = OrderedDict((str(index), each) for index, each in enumerate(self.maps(images)))
        pyramid: OrderedDict[str, Tensor] = self.fpn(named)
        return pyramid


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
