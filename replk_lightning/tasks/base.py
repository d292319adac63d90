"""What every task shares: the recipe's optimizer and schedule, and a stop where a loss is not a number any more."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from replk_lightning.data import DataError, ImageData
from replk_lightning.models.checkpoints import load_backbone
from replk_lightning.recipes import RECIPES, Recipe, RecipeError, get_recipe
from replk_lightning.tasks.optimize import make_optimizer, warmup_cosine

PIXELS = "pixels"
"""Entry of checkpoints: `mean` and `std`, one number a channel, of data that are not normalised as the recipe says."""


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Task(L.LightningModule):
    """A model trained by a recipe. Subclasses build `model` after `follow`, and test as they validate.

    Training steps hand their loss to `log_training_loss`; what `require_finite` is given ends the run if it is False.
    """

    recipe_class: type[Recipe] = Recipe
    """Recipes of other tasks are of another class."""

    recipe: Recipe
    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._finite = torch.ones((), dtype=torch.bool)  # all losses until now

    def follow(self, name: str, overrides: dict[str, Any] | None, options: dict[str, Any] | None) -> dict[str, Any]:
        """Set `recipe` to the one called `name`, some fields replaced.

        Returns what timm is to build the net with: the recipe's drop path and dropout where it has them, and `options`,
        which win. Raises RecipeError for a recipe of another task.
        """
        self.recipe = get_recipe(name, **(overrides or {}))
        if type(self.recipe) is not self.recipe_class:
            fitting = [each for each, make in RECIPES.items() if type(make()) is self.recipe_class]
            raise RecipeError(f"{name} is no recipe of {type(self).__name__}; choose one of {', '.join(fitting)}")
        rates = {"drop_path_rate": self.recipe.drop_path, "drop_rate": self.recipe.dropout}
        return {rate: value for rate, value in rates.items() if value} | (options or {})

    def setup(self, stage: str) -> None:
        """Load `init` before training (a resumed run then takes its own checkpoint's); raises CheckpointError."""
        if stage == "fit" and self.hparams["init"]:
            self.start_from(self.hparams["init"])

    def start_from(self, path: str) -> None:
        """Give the backbone a classifier's weights; raises CheckpointError."""
        load_backbone(self.model.get_submodule("backbone.net"), path)

    @property
    def stage(self) -> str:
        """What names of measures begin with: `val`, or `test` in tests."""
        return "test" if self.trainer.testing else "val"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what else is needed to look at pictures with the trained net."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, ImageData) and data.mean is not None:
            checkpoint[PIXELS] = {"mean": [data.mean] * data.in_chans, "std": [data.std] * data.in_chans}

    def log_training_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log a step's loss as `train_loss`; raises NonFiniteLossError."""
        self._finite = self._finite.to(loss.device) & loss.detach().isfinite()
        # reading it waits for the device, so it is looked at only where Lightning logs anyway
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0:
            self.require_finite(self._finite, "loss")
        self.log("train_loss", loss, prog_bar=True, batch_size=batch_size)

    def require_finite(self, finite: Tensor, what: str) -> None:
        """Go on if `finite` (a boolean scalar) is true in every process; else raises NonFiniteLossError in all."""
        # all processes decide together, or the others would wait for this one for ever
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            raise NonFiniteLossError(f"the {what} became NaN or infinite at step {self.trainer.global_step}")

    def on_validation_epoch_start(self) -> None:
        """A net of nothing but NaN still predicts something, which is no error: so losses until now are looked at."""
        self.require_finite(self._finite, "loss")

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()

    def share_of_peak(self, step: int, steps: int, lr: float) -> float:
        """Learning rate at `step` of `steps` over its peak `lr`: a linear warm-up from zero, a cosine to `min_lr`."""
        warmup = round(steps * self.recipe.warmup_epochs / self.recipe.epochs)
        return warmup_cosine(step, steps, warmup, self.recipe.min_lr / lr)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimizer; its learning rate follows `share_of_peak` step by step.

        Raises DataError for a stream of unknown length.
        """
        total_batch = self._total_batch()
        lr = self.recipe.scaled_lr(total_batch)
        if total_batch != self.recipe.batch_size and self.trainer.is_global_zero:
            print(
                f"learning rate {self.recipe.lr:g} × {total_batch}/{self.recipe.batch_size} = {lr:g} (linear scaling)"
            )
        optimizer = make_optimizer(self.model, self.recipe, lr)
        steps = self._steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.share_of_peak(step, steps, lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise DataError(
                "the data are a stream of unknown length: give it train_size=N, or the trainer max_steps=N."
            )
        return int(steps)

    def _total_batch(self) -> int:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
