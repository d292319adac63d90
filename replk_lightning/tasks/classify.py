"""Image classification as Appendix A trains it."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from replk_lightning.models import create_model
from replk_lightning.models.weights import CheckpointError, load_official
from replk_lightning.recipes import Recipe
from replk_lightning.tasks.base import NonFiniteLossError, Task
from replk_lightning.tasks.loaders import images_of, labelled

__all__ = ["ClassifyTask", "NonFiniteLossError"]


class ClassifyTask(Task):
    """A timm classifier trained by one of `replk_lightning.recipes`.

    Args:
        model: any timm name, this package's included.
        recipe: name of a recipe; `recipe_overrides` replaces some of its fields.
        num_classes, in_chans: of the data.
        init: checkpoint that a fine-tuning starts from; its head is left out where the recipe has a new one.
        model_options: passed to timm; the recipe's drop path and dropout are added where it has them.

    Batches are images (N, C, H, W) of floats and labels (N,) of int64. Logs `train_loss`, `val_loss`, and `val_top1`
    and `val_top5` in percent (`test_…` in tests). Raises ModelError or RecipeError, one sentence each, for a wrong
    model or recipe.
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
        options = self.follow(recipe, recipe_overrides, model_options)
        self.model = create_model(model, in_chans=in_chans, num_classes=num_classes, **options)
        self.mixup = _mixup(self.recipe, num_classes)
        accuracy = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k <= num_classes
        }
        self.val_metrics = MetricCollection(dict(accuracy))
        # Lightning's own mean rounds the number of images that a process has seen on average; MeanMetric forgets its
        # weights with nan_strategy="disable" (torchmetrics issue 3434)
        self.val_loss = MeanMetric(nan_strategy="ignore")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, num_classes)."""
        logits: Tensor = self.model(images)
        return logits

    def start_from(self, path: str) -> None:
        """Give the model a checkpoint's weights; raises CheckpointError."""
        try:
            load_official(self.model, path, head=not self.recipe.new_head)
        except CheckpointError as error:
            differing = [*error.missing, *error.unexpected, *error.misshaped]
            if not differing:
                raise
            message = f"{path} is of another net than {self.hparams['model']}: name its model and model_options"
            if all(name.startswith("head.") for name in differing):
                new = """--model.recipe_overrides='{"new_head": true}'"""
                message = f"{path} has a head for other classes: start with a new one by the recipe's new_head ({new})"
            raise CheckpointError(message, error.missing, error.unexpected, error.misshaped) from error

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, mixed as the recipe says; raises NonFiniteLossError."""
        images, labels = labelled(batch)
        if self.mixup is not None:
            images, labels = mixed(self.mixup, images, labels)
            loss = cross_entropy(self(images), labels)  # the mixed labels are smoothed already
        else:
            loss = cross_entropy(self(images), labels, self.recipe.label_smoothing)
        self.log_training_loss(loss, len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Training went well until now, and nothing has gone wrong in this validation yet."""
        super().on_validation_epoch_start()
        self._validation_finite = torch.ones((), dtype=torch.bool, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracies of one batch."""
        images, labels = labelled(batch)
        logits = self(images)
        loss = cross_entropy(logits, labels)
        self._validation_finite &= loss.isfinite()
        if self.counted(batch_idx):
            self.val_metrics.update(logits, labels)
            self.val_loss.update(loss, len(images))

    def measures(self) -> dict[str, Tensor]:
        """Accuracies in percent and loss; raises NonFiniteLossError."""
        self.require_finite(self._validation_finite, "validation loss")
        percent = {name: 100 * value for name, value in self.val_metrics.compute().items()}
        loss = self.val_loss.compute()
        self.val_metrics.reset()
        self.val_loss.reset()
        return percent | {"loss": loss}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class probabilities (N, num_classes) of a batch's images, with or without labels."""
        logits: Tensor = self(images_of(batch))
        return logits.softmax(dim=-1)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over logits (N, C) and labels (N,) or probabilities (N, C), in 32 bits at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.dtype if labels.is_floating_point() else torch.int64)
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def mixed(mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,), mixed: labels (N, classes) are probabilities then. N may be odd."""
    count = len(images)
    if count % 2:  # timm mixes pairs: the first image gets another turn
        images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
    images, labels = mixup(images, labels)
    return images[:count], labels[:count]


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
