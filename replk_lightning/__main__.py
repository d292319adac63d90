"""python -m replk_lightning fit | validate | test | predict: LightningCLI over the classification task and any data.

Every flag of Lightning's Trainer works; `--model.recipe` names a recipe of `replk_lightning.recipes`, whose epochs,
augmentation, resolution, batch size and EMA hold unless a flag says otherwise.
"""

import sys
from typing import Any

from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from replk_lightning.callbacks import ExactResume
from replk_lightning.data import DataError, ImageData, create_data
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.classify import ClassifyTask, NonFiniteLoss


class NamedData(ImageData):
    """A data set of this package by name, at the recipe's resolution and batch size.

    Args:
        name: mnist5k, generated, imagefolder:PATH, imagenet-1k, hf:NAME.
        options: passed to that data set.
    """

    def __new__(cls, name: str = "mnist5k", options: dict[str, Any] | None = None) -> ImageData:  # type: ignore[misc]
        """The data set itself."""
        return create_data(name, **(options or {}))


class ReplkCLI(LightningCLI):
    """LightningCLI whose defaults come from the recipe."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """No optimizer flags: the recipe has them."""
        parser.set_defaults({"seed_everything": 0})


def main(args: list[str] | None = None) -> int:
    """Run the command; a wrong argument gives one sentence and 2."""
    try:
        ReplkCLI(ClassifyTask, NamedData, save_config_kwargs={"overwrite": True}, args=args)
    except (DataError, NonFiniteLoss) as error:
        print(f"replk_lightning: {error}", file=sys.stderr)
        return 2
    return 0
