"""Image classification as Appendix A trains it."""

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from replk_lightning.data import DataError
from replk_lightning.models import create_model
from replk_lightning.models.checkpoints import load_official
from replk_lightning.recipes import Recipe, get_recipe


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class ClassifyTask(L.LightningModule):
    """A timm classifier trained by one of `replk_lightning.recipes`.

    Args:
        model: any timm name, this package's included.
        recipe: name of a recipe; `recipe_overrides` replaces some of its fields.
        num_classes, in_chans: of the data.
        init: checkpoint that a fine-tuning starts from; its head is left out where the recipe has a new one.
        model_options: passed to timm; the recipe's drop path and dropout are added where it has them.

    Batches are images (N, C, H, W) of floats and labels (N,) of int64. Logs `train_loss`, `val_loss`, and `val_top1`
    and `val_top5` in percent. Raises ModelError or RecipeError, one sentence each, for a wrong model or recipe.
    """

    def __init__(
        self,
        model: str = "replknet_31b",
        recipe: str = "replknet_120ep",
        num_classes: int = 1000,
        in_chans: int = 3,
        init: str | None = None,
        model_options: dict[str, Any] | None = None,
        recipe_overrides: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.recipe = get_recipe(recipe, **(recipe_overrides or {}))
        regularisation = {"drop_path_rate": self.recipe.drop_path, "drop_rate": self.recipe.dropout}
        options = {name: rate for name, rate in regularisation.items() if rate} | (model_options or {})
        self.model = create_model(model, in_chans=in_chans, num_classes=num_classes, **options)
        self.mixup = _mixup(self.recipe, num_classes)
        accuracy = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k <= num_classes
        }
        self.val_metrics = MetricCollection(dict(accuracy), prefix="val_")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, num_classes)."""
        return self.model(images)

    def setup(self, stage: str) -> None:
        """Load `init` before training (a resumed run then takes its own checkpoint's); raises CheckpointError."""
        if stage == "fit" and self.hparams["init"]:
            load_official(self.model, self.hparams["init"], head=not self.recipe.new_head)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, mixed as the recipe says; raises NonFiniteLossError."""
        images, labels = batch
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
            loss = F.cross_entropy(self(images), labels)  # the mixed labels are smoothed already
        else:
            loss = F.cross_entropy(self(images), labels, label_smoothing=self.recipe.label_smoothing)
        # reading the loss waits for the device, so it is looked at only where Lightning logs anyway
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0:
            self._require_finite(loss.isfinite(), "loss")
        self.log("train_loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def _require_finite(self, finite: Tensor, what: str) -> None:
        # all processes decide together, or the others would wait for this one for ever
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            raise NonFiniteLossError(f"the {what} became NaN or infinite at step {self.trainer.global_step}")

    def on_validation_epoch_start(self) -> None:
        """Nothing has gone wrong yet."""
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracies of one batch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self._finite &= loss.isfinite()
        self.val_metrics.update(logits, labels)
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies of the whole set in percent; raises NonFiniteLossError."""
        self._require_finite(self._finite, "validation loss")
        percent = {name: 100 * value for name, value in self.val_metrics.compute().items()}
        self.log_dict(percent, prog_bar=True)
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (N, num_classes)."""
        return self(batch[0]).softmax(dim=-1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimizer; per step, a linear warm-up from zero and a cosine to `min_lr`.

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
        warmup = round(steps * self.recipe.warmup_epochs / self.recipe.epochs)
        floor = self.recipe.min_lr / lr
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup, floor))
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


def warmup_cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear up in `warmup` steps, then a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the model's parameter groups (Appendix A).

    Weight decay spares biases and 1-D parameters unless the recipe says otherwise.
    """
    groups = model if recipe.layer_decay is None else _layer_decay_groups(model, recipe, lr)
    if recipe.optimizer == "adamw":
        options: dict[str, Any] = {"opt": "adamw", "betas": (recipe.momentum, 0.999), "eps": 1e-8}
    else:
        options = {"opt": "momentum", "momentum": recipe.momentum}  # timm's "sgd" is Nesterov's variant
    return create_optimizer_v2(
        groups, lr=lr, weight_decay=recipe.weight_decay, filter_bias_and_bn=not recipe.decay_norm_and_bias, **options
    )


def _layer_decay_groups(model: Any, recipe: Recipe, lr: float) -> list[dict[str, Any]]:
    assert recipe.layer_decay is not None
    layers = group_parameters(model, model.group_matcher(coarse=recipe.decay_by_stage), reverse=True)
    last = max(layers.values())
    skip = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decays = recipe.decay_norm_and_bias or (parameter.ndim > 1 and name not in skip)
        layer = layers[name]
        group = {
            "params": [],
            "lr": lr * recipe.layer_decay ** (last - layer),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )
