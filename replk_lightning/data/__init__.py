"""One DataModule per data set, and `create_data` to get one by its name.

Nothing to download: `mnist5k`, `generated`, and scenes (`scenes`, `scenes-solid`, `scenes-cue-conflict`; `…-masks` to
segment, `…-objects` to detect), composed from packages that are installed anyway. `fashion-mnist` and its garments as
scenes (`scenes-garments`) need Debian's `dataset-fashion-mnist` or the hub. Your own: `imagefolder:PATH` and `hf:NAME`;
`cityscapes:PATH`, `ade20k:PATH` and `coco:PATH` in their official layouts.

Your own masks are `masks:PATH`: `images/train` and `masks/train` (or `train/images` and `train/masks`), the same for
`val`; masks are PNGs of class numbers from 0, 255 is ignored, `classes.txt` names them, one a line. `coco:PATH` reads
exports of annotation tools too (`train/_annotations.coco.json`, `valid/`); FCOS needs no masks. Pictures are read
upright (EXIF); hidden files and folders are skipped, linked folders followed once; what is left out is named.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from replk_lightning.data.ade20k import Ade20k
from replk_lightning.data.augment import Augmentation
from replk_lightning.data.base import DataError, ImageData
from replk_lightning.data.cityscapes import Cityscapes
from replk_lightning.data.coco import Coco
from replk_lightning.data.fashion_mnist import FashionMnist
from replk_lightning.data.generated import Generated
from replk_lightning.data.hub import HubImages
from replk_lightning.data.imagefolder import ImageFolder
from replk_lightning.data.masks import Masks
from replk_lightning.data.mnist5k import Mnist5k
from replk_lightning.data.scene_masks import SceneMasks
from replk_lightning.data.scene_objects import SceneObjects
from replk_lightning.data.scenes import Scenes
from replk_lightning.data.segmentation import SegmentAugmentation
from replk_lightning.recipes import DetectRecipe, Recipe, SegmentRecipe

__all__ = [
    "DATA",
    "TRAIN_SIZES",
    "Augmentation",
    "DataError",
    "ImageData",
    "create_data",
    "data_for_recipe",
    "options_for_recipe",
]

DATA: dict[str, Callable[..., ImageData]] = {
    "mnist5k": Mnist5k,
    "fashion-mnist": FashionMnist,
    "generated": Generated,
    "scenes": Scenes,
    "scenes-solid": partial(Scenes, "solid"),
    "scenes-garments": partial(Scenes, "garments"),
    "scenes-cue-conflict": partial(Scenes, "cue-conflict"),
    "scenes-objects": SceneObjects,
    "scenes-objects-smoke": partial(SceneObjects, train_images=16, test_images=8),
    "scenes-solid-objects": partial(SceneObjects, "lobes"),
    "scenes-garments-objects": partial(SceneObjects, "garments"),
    "scenes-masks": SceneMasks,
    "scenes-solid-masks": partial(SceneMasks, "lobes"),
    "scenes-garments-masks": partial(SceneMasks, "garments"),
    "scenes-masks-smoke": partial(SceneMasks, train_images=16, test_images=8),
    "imagefolder": ImageFolder,
    "imagenet-1k": partial(HubImages, "ILSVRC/imagenet-1k"),
    "hf": HubImages,
    "coco": Coco,
    "cityscapes": partial(Cityscapes, root="cityscapes"),
    "ade20k": Ade20k,
    "masks": Masks,
}
"""Data sets by name; `imagefolder:PATH`, `masks:PATH`, `coco:PATH`, `fashion-mnist:PATH` and `hf:NAME` say which folder
or set of the hub."""

CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
TASK_OF = {
    **dict.fromkeys(("cityscapes", "ade20k", "masks", *(name for name in DATA if "-masks" in name)), SEGMENTATION),
    **dict.fromkeys(("coco", *(name for name in DATA if "-objects" in name)), DETECTION),
}
"""What a data set is for, where it is not classification."""

TRAIN_SIZES = {
    "imagenet-1k": 1_281_167,
    "imagenet-22k": 14_197_122,
    "megdata73m": 73_000_000,  # Appendix A: "38 million labeled images and 35 million unlabeled ones"; private
    "coco": 118_287 - 1_021,  # so many show nothing but crowds, or nothing, and are left out
    "ade20k": 20_210,
    "cityscapes": 2_975,
}
"""Training images of the paper's data sets: what can be planned where they are not at hand."""

PHOTOGRAPHS = {"imagefolder", "imagenet-1k", "hf", "coco", "cityscapes", "ade20k", "masks"}
NEEDS = {"imagefolder": "root", "masks": "root", "hf": "dataset"}
TAKES = {**NEEDS, "fashion-mnist": "root", "coco": "root", "cityscapes": "root", "ade20k": "root"}
"""The option that stands after the colon: where it must, and where it may."""

SIZED_BY_AUGMENTATION = {"cityscapes", "ade20k", "masks"}


def create_data(
    name: str, *, augmentation: Augmentation | SegmentAugmentation | None = None, **options: Any
) -> ImageData:
    """Make the data set called `name`, a key of DATA, or one that NEEDS more, as in `coco:PATH`; reads nothing yet.

    Args:
        augmentation: for photographs; the sets held in memory only translate their images, and ignore it.
        options: passed to the set; all take `image_size`, `batch_size` (per device) and `num_workers`.

    Raises:
        DataError: the name is unknown or incomplete.
    """
    kind, colon, where = name.partition(":")
    if kind not in DATA or (colon and kind not in TAKES):
        examples = ", ".join(f"{set_}:{what.upper()}" for set_, what in TAKES.items())
        raise DataError(f"No data set is called {name!r}; there are {', '.join(DATA)} ({examples}).")
    if where:
        options[TAKES[kind]] = where
    if kind in NEEDS and NEEDS[kind] not in options:
        raise DataError(f"The data set {kind} needs its {NEEDS[kind]}: write {kind}:{NEEDS[kind].upper()}.")
    if kind in PHOTOGRAPHS:
        options["augmentation"] = augmentation
    try:
        return DATA[kind](**options)
    except TypeError as error:
        raise DataError(f"The data set {name} does not take these options: {error}.") from error


def data_for_recipe(name: str, recipe: Recipe, **options: Any) -> ImageData:
    """`create_data` at a recipe's resolution, batch size per GPU and augmentation, unless `options` say otherwise.

    Raises DataError for data of another task.
    """
    base = name.partition(":")[0]
    if base in DATA and (task := TASK_OF.get(base, CLASSIFICATION)) != (wanted := _task_of(recipe)):
        both = f"The data set {base} is for {task}, and the recipe {recipe.name} is for {wanted}"
        raise DataError(f"{both}: name other data or another recipe.")
    defaults = options_for_recipe(recipe)
    if base in SIZED_BY_AUGMENTATION:
        del defaults["image_size"]
    if base == "coco" and isinstance(recipe, DetectRecipe):
        defaults["masks"] = recipe.head == "cascade_mask_rcnn"
    return create_data(name, **(defaults | options))


def _task_of(recipe: Recipe) -> str:
    if isinstance(recipe, SegmentRecipe):
        return SEGMENTATION
    return DETECTION if isinstance(recipe, DetectRecipe) else CLASSIFICATION


def options_for_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says about the data: `image_size`, `batch_size` per GPU and `augmentation`."""
    batch_size = recipe.batch_size // recipe.gpus
    return {"image_size": recipe.resolution, "batch_size": batch_size, "augmentation": _augmentation(recipe)}


def _augmentation(recipe: Recipe) -> Augmentation | SegmentAugmentation:
    if isinstance(recipe, SegmentRecipe):
        return SegmentAugmentation(
            crop=recipe.crop,
            resize=recipe.resize,
            scales=recipe.scales,
            multiple=recipe.multiple,
            mean=recipe.mean,
            std=recipe.std,
        )
    return Augmentation(
        auto_augment=recipe.auto_augment,
        random_erasing=recipe.random_erasing,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
        random_crop=isinstance(recipe, DetectRecipe) and recipe.random_crop,
    )
