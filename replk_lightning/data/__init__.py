"""One DataModule per data set, and `create_data` to get one by its name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from replk_lightning.recipes import Recipe

from .augment import Augmentation
from .base import DataError, ImageData
from .generated import Generated
from .hub import HubImages
from .imagefolder import ImageFolder
from .mnist5k import Mnist5k
from .scenes import Scenes

__all__ = ["DATA", "Augmentation", "DataError", "ImageData", "create_data", "data_for_recipe", "options_for_recipe"]

DATA: dict[str, Callable[..., ImageData]] = {
    "mnist5k": Mnist5k,
    "generated": Generated,
    "scenes": Scenes,
    "scenes-cue-conflict": partial(Scenes, "cue-conflict"),
    "imagefolder": ImageFolder,
    "imagenet-1k": partial(HubImages, "ILSVRC/imagenet-1k"),
    "hf": HubImages,
}
"""Data sets by name; `imagefolder:PATH` and `hf:NAME` say which folder and which set of the hub."""

PHOTOGRAPHS = {"imagefolder", "imagenet-1k", "hf"}
NEEDS = {"imagefolder": "root", "hf": "dataset"}
"""The option that stands after the colon."""


def create_data(name: str, *, augmentation: Augmentation | None = None, **options: Any) -> ImageData:
    """Make the data set called `name`, a key of DATA or `imagefolder:PATH` or `hf:NAME`; reads nothing yet.

    Args:
        augmentation: for photographs; the sets held in memory only translate their images, and ignore it.
        options: passed to the set; all take `image_size`, `batch_size` (per device) and `num_workers`.

    Raises:
        DataError: the name is unknown or incomplete.
    """
    kind, colon, where = name.partition(":")
    if kind not in DATA or (colon and kind not in NEEDS):
        raise DataError(f"No data set is called {name!r}; there are {', '.join(DATA)} (imagefolder:PATH, hf:NAME).")
    if where:
        options[NEEDS[kind]] = where
    if kind in NEEDS and NEEDS[kind] not in options:
        raise DataError(f"The data set {kind} needs its {NEEDS[kind]}: write {kind}:{NEEDS[kind].upper()}.")
    if kind in PHOTOGRAPHS:
        options["augmentation"] = augmentation
    try:
        return DATA[kind](**options)
    except TypeError as error:
        raise DataError(f"The data set {name} does not take these options: {error}.") from error


def data_for_recipe(name: str, recipe: Recipe, **options: Any) -> ImageData:
    """`create_data` at a recipe's resolution, batch size per GPU and augmentation, unless `options` say otherwise."""
    return create_data(name, **(options_for_recipe(recipe) | options))


def options_for_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says about the data: `image_size`, `batch_size` per GPU and `augmentation`."""
    augmentation = Augmentation(
        auto_augment=recipe.auto_augment,
        random_erasing=recipe.random_erasing,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
    )
    batch_size = recipe.batch_size // recipe.gpus
    return {"image_size": recipe.resolution, "batch_size": batch_size, "augmentation": augmentation}
