"""What every task shares: the recipe's optimizer and schedule, and a stop where a loss is not a number any more."""

import math
from abc import abstractmethod
from typing import Any
from warnings import warn

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from replk_lightning.data import DataError, ImageData
from replk_lightning.data.samplers import counts
from replk_lightning.distributed import mean_over_all
from replk_lightning.models.weights import load_backbone
from replk_lightning.recipes import RECIPES, Recipe, RecipeError, get_recipe
from replk_lightning.tasks.loaders import batch_size_of, class_names_of
from replk_lightning.tasks.optim import Schedule, make_optimizer, warmup_cosine
from replk_lightning.tasks.resume import require_fit

PIXELS = "pixels"
"""Entry of checkpoints: `mean` and `std`, one number a channel, of data that are not normalised as the recipe says."""

CLASS_NAMES = "class_names"
"""Entry of checkpoints: a list of strings in the order of the classes' numbers, where the data name them."""

LOOK_EVERY = 50
"""Steps between two looks at the loss where the trainer logs none."""


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Task(L.LightningModule):
    """A model trained by a recipe. Subclasses build `model` after `follow`, and test as they validate.

    Training steps hand their loss to `log_training_loss`; what `require_finite` is given ends the run if it is False.
    In validation every batch goes through the model, and what `counted` denies is not looked at further; `measures`
    are then of one loader, and are named `NAME/dataloader_idx_N`, as Lightning does, where there are several.

    Any DataLoader or LightningDataModule will do whose batches are what the subclass says. A data module's
    `class_names`, or the `classes` of the training loader's dataset, are kept in checkpoints.
    """

    recipe_class: type[Recipe] = Recipe
    """Recipes of other tasks are of another class."""

    recipe: Recipe
    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._finite = torch.ones((), dtype=torch.bool)  # all losses until now
        self.class_names: tuple[str, ...] | None = None
        self._loader, self._measured = 0, dict[str, Tensor]()

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
        names = class_names_of(self._trainer, self.hparams["num_classes"]) or self.class_names
        if names:
            checkpoint[CLASS_NAMES] = list(names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes' names; raises CheckpointError for a checkpoint that this task cannot go on from."""
        require_fit(self, checkpoint)
        self.hparams["init"] = checkpoint.get("hyper_parameters", {}).get("init")  # what the weights go back to
        names = checkpoint.get(CLASS_NAMES)
        self.class_names = tuple(names) if names else None
        now = class_names_of(self._trainer, self.hparams["num_classes"]) or names or ()
        differing = [pair for pair in zip(names or (), now, strict=False) if pair[0] != pair[1]]
        if differing:
            what = "a class is {1} in the data and was {0} for the checkpoint".format(*differing[0])
            warn(f"{what}: labels may mean something else", stacklevel=2)

    def log_training_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log a step's loss as `train_loss`; raises NonFiniteLossError."""
        self._finite = self._finite.to(loss.device) & loss.detach().isfinite()
        # reading it waits for the device, so it is looked at only where Lightning logs anyway
        every = self.trainer.log_every_n_steps or LOOK_EVERY  # type: ignore[attr-defined] # set from outside
        if self.trainer.global_step % every == 0:
            self.require_finite(self._finite, "loss")
        if (self.trainer.global_step + 1) % every == 0:  # what is written is the mean over all processes
            loss = mean_over_all(loss.detach())
        self.log("train_loss", loss, prog_bar=True, batch_size=batch_size)

    def require_finite(self, finite: Tensor, what: str) -> None:
        """Go on if `finite` (a boolean scalar) is true in every process; else raises NonFiniteLossError in all."""
        # all processes decide together, or the others would wait for this one for ever
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            raise NonFiniteLossError(f"the {what} became NaN or infinite at step {self.trainer.global_step}")

    def counted(self, batch_idx: int) -> bool:
        """Whether a batch in evaluation is this process's own; others only keep it in step with the other processes."""
        trainer = self.trainer
        loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        return loaders is None or counts(CombinedLoader(loaders, "sequential").flattened[self._loader], batch_idx)

    @abstractmethod
    def measures(self) -> dict[str, Tensor]:
        """What one loader's batches gave, by name without `val_`; forgets them."""

    def on_train_epoch_end(self) -> None:
        """No checkpoint is written of a net that has gone wrong."""
        self.require_finite(self._finite, "loss")

    def on_validation_epoch_start(self) -> None:
        """A net of nothing but NaN still predicts something, which is no error: so losses until now are looked at."""
        self.require_finite(self._finite, "loss")
        self._loader, self._measured = 0, {}

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Close the loader before, where there are several."""
        if dataloader_idx != self._loader:
            self._measure()
            self._loader = dataloader_idx

    def on_validation_epoch_end(self) -> None:
        """Log all measures of all loaders."""
        self._measure()
        self.log_dict(self._measured, prog_bar=True, add_dataloader_idx=False)

    def _measure(self) -> None:
        trainer = self.trainer
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        suffix = f"/dataloader_idx_{self._loader}" if len(batches) > 1 else ""
        self._measured |= {f"{self.stage}_{name}{suffix}": value for name, value in self.measures().items()}

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.on_validation_batch_start(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()

    def share_of_peak(self, step: int, steps: int, lr: float) -> float:
        """Learning rate at `step` of `steps` over its peak `lr`: a linear warm-up from zero, a cosine to `min_lr`."""
        warmup = round(steps * self.recipe.warmup_epochs / max(1, self.recipe.epochs))
        return warmup_cosine(step, steps, warmup, self.recipe.min_lr / lr)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimizer; its learning rate follows `share_of_peak` step by step.

        Raises DataError for a training of unknown length.
        """
        trainer = self.trainer
        steps = self._steps()
        trainer.fit_loop.setup_data()  # opens the training loader, which that may have done
        total_batch = batch_size_of(trainer.train_dataloader) * trainer.world_size * trainer.accumulate_grad_batches
        lr = self.recipe.scaled_lr(total_batch)
        if total_batch != self.recipe.batch_size and trainer.is_global_zero:
            print(
                f"learning rate {self.recipe.lr:g} × {total_batch}/{self.recipe.batch_size} = {lr:g} (linear scaling)"
            )
        optimizer = make_optimizer(self.model, self.recipe, lr)
        epoch = steps / (trainer.max_epochs or 1) if trainer.max_steps == -1 else 1
        schedule = Schedule(optimizer, lambda step: self.share_of_peak(step, steps, lr), epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:
            raise DataError(
                "how many steps the training takes is unknown, and the learning rate follows it: give the trainer "
                "max_epochs or, for a stream, max_steps; streams of this package take train_size=N as well."
            )
        return int(steps)
