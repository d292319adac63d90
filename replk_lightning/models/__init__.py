"""RepLKNet and MobileNetV2 with large kernels; importing this package registers them with timm."""

from replk_lightning.models.mobilenet import MobileNetV2
from replk_lightning.models.replknet import RepLKNet

__all__ = ["MobileNetV2", "RepLKNet"]
