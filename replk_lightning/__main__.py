"""python -m replk_lightning fit | validate | test: LightningCLI over this package's tasks and data.

`--model.recipe` names a recipe of `replk_lightning.recipes` and with it the task: classification, segmentation
(upernet_…, deeplabv3plus_…) or detection (fcos_…, cascade_mask_rcnn_…). Its epochs or iterations, resolution, batch
size, augmentation and EMA hold unless a flag says otherwise. Every flag of Lightning's Trainer works.

`python -m replk_lightning predict --ckpt last.ckpt --images FOLDER --out FOLDER` looks at pictures, and `pseudo-label`
writes soft labels; both are commands of their own with a --help of their own.
"""

import sys
from typing import Any, NoReturn

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from replk_lightning.callbacks import ExactResume
from replk_lightning.data import DataError, ImageData, data_for_recipe
from replk_lightning.models import ModelError
from replk_lightning.models.checkpoints import CheckpointError
from replk_lightning.predict import main as predict
from replk_lightning.pseudo_label.command import main as pseudo_label
from replk_lightning.recipes import DetectRecipe, Recipe, RecipeError, SegmentRecipe, get_recipe
from replk_lightning.tasks.base import NonFiniteLossError
from replk_lightning.tasks.choose import named_task

COMMANDS = {"predict": predict, "pseudo-label": pseudo_label}
"""What Lightning's Trainer has no method for, or one that writes nothing."""


def named_data(
    name: str | None = None,
    recipe: str = "replknet_120ep",
    recipe_overrides: dict[str, Any] | None = None,
    batch_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> ImageData:
    """A data set of this package under a recipe.

    Args:
        name: mnist5k, generated, scenes, imagefolder:PATH, imagenet-1k or hf:NAME; for segmentation scenes-masks,
            cityscapes:PATH or ade20k:PATH; for detection scenes-objects or coco:PATH. Default: mnist5k, and the
            recipe's own in segmentation and detection.
        recipe, recipe_overrides: the model's.
        batch_size: images a device and step (default: the recipe's; the learning rate scales with it).
        options: passed to the data set, for example its number of workers.
    """
    more = dict(options or {})
    if batch_size is not None:
        more["batch_size"] = batch_size
    found = get_recipe(recipe, **(recipe_overrides or {}))
    return data_for_recipe(name or data_of(found), found, **more)


def data_of(recipe: Recipe) -> str:
    """The data set that a recipe is for; MNIST where it is of classification, as that needs no download."""
    if isinstance(recipe, SegmentRecipe):
        return recipe.data
    return "coco" if isinstance(recipe, DetectRecipe) else "mnist5k"


class FlagError(ValueError):
    """Flags that Lightning's Trainer refuses."""


class OneSentence(LightningArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One sentence and 2, of jsonargparse's many lines the key and the value."""
        lines = [line.strip() for line in message.splitlines()]
        values = [line.partition(": ")[2] for line in lines if line.startswith("Given value: ")]
        sentence = f"{lines[0].rstrip(':')} does not take {values[-1]}." if values else " ".join(lines[:2])
        self.exit(2, f"replk_lightning: {sentence}\n")


class ReplkCLI(LightningCLI):
    """LightningCLI whose defaults come from the recipe."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's without `predict`, which is a command of this package."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The model tells the data its recipe, the data tell the model their classes and channels."""
        parser.link_arguments("model.recipe", "data.recipe")
        parser.link_arguments("model.recipe_overrides", "data.recipe_overrides")
        for fact in ("num_classes", "in_chans"):
            parser.link_arguments(f"data.{fact}", f"model.{fact}", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's; raises FlagError."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise FlagError(f"the trainer does not take these flags: {str(error).splitlines()[0]}") from error

    def before_instantiate_classes(self) -> None:
        """As many epochs or iterations as the recipe says unless a flag does."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            overrides = config.model.recipe_overrides or {}
            for name, value in get_recipe(config.model.recipe, **overrides).length.items():
                config.trainer[name] = value

    def after_instantiate_classes(self) -> None:
        """The recipe's EMA."""
        if self.subcommand == "fit" and self.model.recipe.ema is not None:
            ema = EMAWeightAveraging(decay=self.model.recipe.ema)
            self.trainer.callbacks.insert(0, ema)  # type: ignore[attr-defined]


def main() -> int:
    """Run the command; a wrong model, recipe or data set gives one sentence and 2."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    try:
        ReplkCLI(
            named_task,
            named_data,
            parser_kwargs={"description": __doc__},
            parser_class=OneSentence,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "default_root_dir": "runs/fit",
                "callbacks": [ExactResume(), ModelCheckpoint(save_last=True, save_on_train_epoch_end=True)],
            },
        )
    except (CheckpointError, DataError, FlagError, ModelError, RecipeError, NonFiniteLossError, OSError) as error:
        print(f"replk_lightning: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
