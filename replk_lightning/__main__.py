"""python -m replk_lightning fit | validate | test | predict: LightningCLI over the classification task and any data.

`python -m replk_lightning pseudo-label` is a command of its own, in `replk_lightning.pseudo_label`.

Every flag of Lightning's Trainer works. `--model.recipe` names a recipe of `replk_lightning.recipes`; its epochs,
resolution, batch size, augmentation and EMA hold unless a flag says otherwise.
"""

import sys
from typing import Any

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from replk_lightning.callbacks import ExactResume
from replk_lightning.data import DataError, ImageData, data_for_recipe
from replk_lightning.models import ModelError
from replk_lightning.pseudo_label.command import main as pseudo_label
from replk_lightning.recipes import RecipeError, get_recipe
from replk_lightning.tasks.classify import ClassifyTask, NonFiniteLossError


def named_data(
    name: str = "mnist5k",
    recipe: str = "replknet_120ep",
    recipe_overrides: dict[str, Any] | None = None,
    batch_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> ImageData:
    """A data set of this package under a recipe.

    Args:
        name: mnist5k, generated, imagefolder:PATH, imagenet-1k or hf:NAME.
        recipe, recipe_overrides: the model's.
        batch_size: images a device and step (default: the recipe's; the learning rate scales with it).
        options: passed to the data set, for example its number of workers.
    """
    more = dict(options or {})
    if batch_size is not None:
        more["batch_size"] = batch_size
    return data_for_recipe(name, get_recipe(recipe, **(recipe_overrides or {})), **more)


class ReplkCLI(LightningCLI):
    """LightningCLI whose defaults come from the recipe."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The model tells the data its recipe, the data tell the model their classes and channels."""
        parser.link_arguments("model.recipe", "data.recipe")
        parser.link_arguments("model.recipe_overrides", "data.recipe_overrides")
        for fact in ("num_classes", "in_chans"):
            parser.link_arguments(f"data.{fact}", f"model.{fact}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """As many epochs as the recipe says unless a flag does."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            overrides = config.model.recipe_overrides or {}
            config.trainer.max_epochs = get_recipe(config.model.recipe, **overrides).epochs

    def after_instantiate_classes(self) -> None:
        """The recipe's EMA."""
        if self.subcommand == "fit" and self.model.recipe.ema is not None:
            ema = EMAWeightAveraging(decay=self.model.recipe.ema)
            self.trainer.callbacks.insert(0, ema)  # type: ignore[attr-defined]


def main() -> int:
    """Run the command; a wrong model, recipe or data set gives one sentence and 2."""
    if sys.argv[1:2] == ["pseudo-label"]:
        return pseudo_label(sys.argv[2:])
    try:
        ReplkCLI(
            ClassifyTask,
            named_data,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "callbacks": [ExactResume(), ModelCheckpoint(save_last=True, save_on_train_epoch_end=True)]
            },
        )
    except (DataError, ModelError, RecipeError, NonFiniteLossError) as error:
        print(f"replk_lightning: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
