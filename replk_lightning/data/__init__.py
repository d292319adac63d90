"""One DataModule per data set, and `create_data` to get one by its name."""

from collections.abc import Callable
from typing import Any

from .base import DataError, ImageData
from .generated import Generated
from .mnist5k import Mnist5k

__all__ = ["DATA", "DataError", "ImageData", "create_data"]

DATA: dict[str, Callable[..., ImageData]] = {
    "mnist5k": Mnist5k,
    "generated": Generated,
}
"""Data sets by name."""


def create_data(name: str, **options: Any) -> ImageData:
    """Make the data set called `name`; reads nothing yet. Raises DataError for an unknown name."""
    if name not in DATA:
        raise DataError(f"No data set is called {name!r}; there are {', '.join(DATA)}.")
    return DATA[name](**options)


def data_for_recipe(name: str, recipe, **options: Any) -> ImageData:
    return create_data(
        name, **{"image_size": recipe.resolution, "batch_size": recipe.batch_size // recipe.gpus, **options}
    )
