"""The paper's training recipes as frozen dataclasses: a module a task; `classify` is Appendix A, `detect` Sec. 4.5."""

from collections.abc import Callable
from typing import Any

from replk_lightning.recipes.base import Recipe, RecipeError
from replk_lightning.recipes.classify import (
    mobilenetv2_100ep,
    replknet_22k_finetune_224,
    replknet_22k_finetune_384,
    replknet_120ep,
    replknet_300ep,
    replknet_finetune_384,
    replknet_pretrain_22k,
    xl_finetune_320,
    xl_semi_supervised,
)
from replk_lightning.recipes.detect import (
    DetectRecipe,
    cascade_mask_rcnn_3x,
    cascade_mask_rcnn_3x_22k,
    cascade_mask_rcnn_3x_31l,
    cascade_mask_rcnn_3x_xl,
    fcos_2x,
)
from replk_lightning.recipes.segment import (
    SegmentRecipe,
    deeplabv3plus_cityscapes_80k,
    upernet_ade20k_80k,
    upernet_ade20k_160k,
    upernet_ade20k_160k_640,
    upernet_ade20k_160k_xl,
    upernet_cityscapes_80k,
)

__all__ = [
    "RECIPES",
    "DetectRecipe",
    "Recipe",
    "RecipeError",
    "SegmentRecipe",
    "cascade_mask_rcnn_3x",
    "cascade_mask_rcnn_3x_22k",
    "cascade_mask_rcnn_3x_31l",
    "cascade_mask_rcnn_3x_xl",
    "deeplabv3plus_cityscapes_80k",
    "fcos_2x",
    "get_recipe",
    "mobilenetv2_100ep",
    "replknet_22k_finetune_224",
    "replknet_22k_finetune_384",
    "replknet_120ep",
    "replknet_300ep",
    "replknet_finetune_384",
    "replknet_pretrain_22k",
    "upernet_ade20k_80k",
    "upernet_ade20k_160k",
    "upernet_ade20k_160k_640",
    "upernet_ade20k_160k_xl",
    "upernet_cityscapes_80k",
    "xl_finetune_320",
    "xl_semi_supervised",
]

RECIPES: dict[str, Callable[[], Recipe]] = {
    f.__name__: f
    for f in (
        mobilenetv2_100ep,
        replknet_120ep,
        replknet_300ep,
        replknet_finetune_384,
        replknet_pretrain_22k,
        replknet_22k_finetune_224,
        replknet_22k_finetune_384,
        xl_semi_supervised,
        xl_finetune_320,
        deeplabv3plus_cityscapes_80k,
        upernet_ade20k_80k,
        upernet_ade20k_160k,
        upernet_ade20k_160k_640,
        upernet_ade20k_160k_xl,
        upernet_cityscapes_80k,
        fcos_2x,
        cascade_mask_rcnn_3x,
        cascade_mask_rcnn_3x_22k,
        cascade_mask_rcnn_3x_31l,
        cascade_mask_rcnn_3x_xl,
    )
}


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe called `name`, some fields replaced; raises RecipeError naming the choices."""
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]().with_overrides(**overrides)
