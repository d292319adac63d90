"""What every task shares: the recipe's optimizer and schedule, and a stop where a loss is not a number any more."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from replk_lightning.data import DataError
from replk_lightning.data.sharing import counts, mean_over_all
from replk_lightning.recipes import Recipe
from replk_lightning.tasks.optimize import make_optimizer, warmup_cosine


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Task(L.LightningModule):
    """A model trained by a recipe. Subclasses set `recipe` and `model`, and test as they validate.

    Training steps hand their loss to `log_training_loss`; what `require_finite` is given ends the run if it is False.
    In validation every batch goes through the model, and what `counted` denies is not looked at further.
    """

    recipe: Recipe
    model: nn.Module

    def log_training_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log a step's loss as `train_loss`; raises NonFiniteLossError."""
        # reading the loss waits for the device, so it is looked at only where Lightning logs anyway
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0:
            self.require_finite(loss.isfinite(), "loss")
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
        return counts(trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders, batch_idx)

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
