"""Classification for several tasks, with hard and soft targets: how RepLKNet-XL was pre-trained (Appendix A)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from replk_lightning.data.targets import Targets
from replk_lightning.recipes import RecipeError
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.loaders import images_of, labelled

Batch = tuple[Tensor, dict[str, Targets]]


class MultiTaskClassify(ClassifyTask):
    """One backbone and one linear head a task.

    The heads are the rows of one linear layer, the model's own classifier of all tasks' classes together: same
    parameters, same initialisation, and the model stays one of timm's.

    Args:
        tasks: number of classes of each task, in the order of the heads.
        model, recipe, in_chans, init, model_options, recipe_overrides: as of ClassifyTask.

    Batches are images (N, C, H, W) of floats and `{task: Targets}`. A task's loss is the mean cross-entropy over the
    images that it knows something about, smoothed as the recipe says where a person gave the label; the loss is the
    mean over the tasks that know any image of the batch. Logs `train_loss`, `train_loss_TASK`, `val_loss`, and
    `val_top1_TASK` in percent, with `val_top1` their mean. Raises RecipeError where the recipe mixes images.
    """

    def __init__(
        self,
        tasks: dict[str, int],
        model: str = "replknet_xl",
        recipe: str = "xl_semi_supervised",
        in_chans: int = 3,
        init: str | None = None,
        model_options: dict[str, Any] | None = None,
        recipe_overrides: dict[str, Any] | None = None,
    ) -> None:
        num_classes = sum(tasks.values())
        super().__init__(model, recipe, num_classes, in_chans, init, model_options, recipe_overrides)
        self.save_hyperparameters()
        if self.mixup is not None:
            raise RecipeError(f"the recipe {recipe!r} mixes images, which several tasks' targets do not allow")
        self.tasks = dict(tasks)
        self.val_metrics = MetricCollection(
            {f"top1_{task}": MulticlassAccuracy(count, average="micro") for task, count in tasks.items()}
        )

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) → logits (N, classes) a task."""
        return dict(zip(self.tasks, self(images).split(list(self.tasks.values()), dim=1), strict=True))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override] # batches of its own
        """Loss of one batch; raises NonFiniteLossError."""
        images, targets = labelled(batch)
        losses, known = self._losses(images, targets, self.recipe.label_smoothing)
        loss = losses.sum() / (known > 0).sum().clamp(min=1)
        self.log_training_loss(loss, len(images))
        for task, of_task, count in zip(self.tasks, losses, known, strict=True):
            if count:
                self.log(f"train_loss_{task}", of_task, batch_size=int(count))
        return loss

    def _losses(self, images: Tensor, targets: dict[str, Targets], smoothing: float) -> tuple[Tensor, Tensor]:
        """Mean loss and number of known images of each task (T,); 0 and part of the graph where none is known."""
        losses, counts = [], []
        for task, logits in self.logits(images).items():
            each, known = soft_cross_entropy(logits, targets[task], smoothing), targets[task].known
            losses.append((each * known).sum() / known.sum().clamp(min=1))
            counts.append(known.sum())
        return torch.stack(losses), torch.stack(counts)

    def validation_step(  # type: ignore[override] # batches of its own
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Loss and accuracies of one batch; accuracies count human labels only."""
        images, targets = labelled(batch)
        counted = self.counted(batch_idx)
        for task, logits in self.logits(images).items():
            human = targets[task].human & counted
            labels = targets[task].classes[human, 0].long()
            loss = F.cross_entropy(logits[human], labels, reduction="sum") / max(1, len(labels))
            self._validation_finite &= loss.isfinite()
            if len(labels):
                self.val_metrics[f"top1_{task}"].update(logits[human], labels)
                self.val_loss.update(loss, len(labels))

    def measures(self) -> dict[str, Tensor]:
        """Each task's accuracy in percent, and their mean; raises NonFiniteLossError."""
        self.require_finite(self._validation_finite, "validation loss")
        # all processes decide together which tasks have been validated, as computing waits for all of them
        decide = self.trainer.strategy.reduce_boolean_decision
        measured = {name: m for name, m in self.val_metrics.items() if decide(m.update_called, all=False)}
        found = {name: 100 * metric.compute() for name, metric in measured.items()}
        if found:
            found |= {"top1": torch.stack(list(found.values())).mean(), "loss": self.val_loss.compute()}
        self.val_metrics.reset()
        self.val_loss.reset()
        return found

    def predict_step(  # type: ignore[override] # an answer a task
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Class probabilities (N, classes) a task."""
        return {task: logits.softmax(dim=-1) for task, logits in self.logits(images_of(batch)).items()}


def soft_cross_entropy(logits: Tensor, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (N,) of logits (N, C) with hard or soft targets; 0 for images without.

    `label_smoothing` mixes the uniform distribution into human labels; soft ones are soft already.
    """
    classes = logits.shape[1]
    wanted = targets.dense(classes)
    smoothed = (1 - label_smoothing) * wanted + label_smoothing / classes
    wanted = torch.where(targets.human[:, None], smoothed, wanted)
    return -(wanted * logits.float().log_softmax(dim=1)).sum(dim=1)
