"""RepLKNet and MobileNetV2 with large kernels; importing this package registers them with timm."""

from typing import Any

import timm
from torch import nn

from replk_lightning.models.mobilenet import MobileNetV2
from replk_lightning.models.replknet import RepLKNet

__all__ = ["MobileNetV2", "ModelError", "RepLKNet", "create_model"]


class ModelError(ValueError):
    """A model cannot be built; the message is one sentence that names it and why."""


def create_model(name: str, **options: Any) -> nn.Module:
    """`timm.create_model` for names and options that a user typed; raises ModelError."""
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"no model {name!r} with {options}: {error}") from error
