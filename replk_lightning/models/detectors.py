"""The two detectors of Table 9 by the names that recipes give them."""

from dataclasses import asdict
from typing import Any

from torch import nn

from replk_lightning.models.cascade import create_cascade_mask_rcnn
from replk_lightning.models.fcos import create_fcos
from replk_lightning.recipes import DetectRecipe

_SIZES = ("channels", "head_convs", "train_sizes", "test_size", "max_size", "detections")
_SIZES_OF_STAGES = ("fc", "proposals", "rois")


def create_detector(model: str, recipe: DetectRecipe, num_classes: int, in_chans: int = 3, **options: Any) -> nn.Module:
    """The recipe's head, in the recipe's sizes, on the timm net called `model`, which gets `options`.

    Raises ModelError for a net that cannot be built or lacks the maps that the head needs.
    """
    fields = asdict(recipe)
    sizes = {name: fields[name] for name in _SIZES}
    if recipe.head == "fcos":
        return create_fcos(model, num_classes, in_chans=in_chans, **sizes, **options)
    sizes |= {name: fields[name] for name in _SIZES_OF_STAGES}
    return create_cascade_mask_rcnn(model, num_classes, in_chans=in_chans, **sizes, **options)
