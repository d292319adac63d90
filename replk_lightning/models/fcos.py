"""FCOS, a one-stage detector without anchors (Tian et al. 2019), on any timm net: Table 9's first rows.

Everything on the backbone is torchvision's: the pyramid on strides 8, 16 and 32 with two coarser maps from its output,
the head of four convolutions with group norms, the assignment of points to boxes and the losses. It differs from
MMDetection's, which the paper used, where torchvision does: points near a box's centre only are positive, the box loss
is the generalised IoU's, unweighted by centreness, and a class's score is the square root of its product with that.
"""

from functools import partial
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from replk_lightning.models.pyramid import Pyramid, Resize

STRIDES = (8, 16, 32)
NORM_GROUP = 8
"""Channels that share a group norm's statistics."""


class Head(FCOSHead):
    """torchvision's head at any width: its group norms have 32 groups of eight channels at 256, and of eight here too.

    Args:
        channels: of the pyramid and of each convolution.
        num_classes: how many.
        convs: convolutions before the last one, for classes and for boxes.
    """

    def __init__(self, channels: int, num_classes: int, convs: int) -> None:
        super(FCOSHead, self).__init__()  # FCOSHead's own would build 32 groups first
        norm = partial(nn.GroupNorm, channels // NORM_GROUP if channels % NORM_GROUP == 0 else 1)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, convs, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(channels, 1, convs, norm_layer=norm)


def create_fcos(
    model: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    channels: int = 256,
    head_convs: int = 4,
    train_sizes: tuple[int, ...] = (640, 800),
    test_size: int = 800,
    max_size: int = 1333,
    detections: int = 100,
    **options: Any,
) -> FCOS:
    """FCOS on the timm net called `model`; what the arguments mean is said in `recipes.detect.DetectRecipe`.

    In training it maps images, a list of float32 (in_chans, H, W), normalised, and targets of torchvision's form with
    labels from 0, to a dictionary of losses; else images to detections of that form with `scores`, in the pixels of
    the images as they came. `options` go to timm. Raises ModelError for a net without maps of strides 8, 16 and 32.
    """
    pyramid = Pyramid(model, STRIDES, channels, LastLevelP6P7(channels, channels), in_chans=in_chans, **options)
    head = Head(channels, num_classes, head_convs)
    net = FCOS(pyramid, num_classes, head=head, score_thresh=0.05, nms_thresh=0.5, detections_per_img=detections)
    net.transform = Resize(train_sizes, test_size, max_size)
    return net
