"""Semantic segmentation as Sec. 3 and 4.4 transfer pre-trained nets to it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from replk_lightning.data.segmentation import IGNORED, nearest
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import SegmentRecipe
from replk_lightning.tasks.base import Task
from replk_lightning.tasks.loaders import images_of, labelled
from replk_lightning.tasks.optim import warmup_poly

OVERLAP = 1 / 3
"""Share of a window that the next one sees again, at least."""


class SegmentTask(Task):
    """A segmenter on a timm net, trained by one of `replk_lightning.recipes.segment`.

    Args:
        model: any timm name with the feature maps that the head needs, this package's included.
        recipe: name of a recipe of segmentation; `recipe_overrides` replaces some of its fields.
        num_classes, in_chans: of the data.
        init: checkpoint of the classifier that the backbone starts from.
        model_options: passed to timm; the recipe's drop path is added where it has one.

    Batches are images (N, C, H, W) of floats and labels (N, H, W) of int64, IGNORED where nothing counts; in validation
    labels may have another size, to which logits are brought. Logs `train_loss`, and mean intersection over union in
    percent over the whole set: `val_miou` of one scale, and in tests `test_miou` and `test_miou_ms` of several scales
    and their mirror images. Raises ModelError or RecipeError, one sentence each, for a wrong model or recipe.
    """

    recipe_class = SegmentRecipe
    recipe: SegmentRecipe

    def __init__(
        self,
        model: str = "replknet_31b",
        recipe: str = "upernet_ade20k_160k",
        num_classes: int = 150,
        in_chans: int = 3,
        init: str | None = None,
        model_options: dict[str, Any] | None = None,
        recipe_overrides: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        options = self.follow(recipe, recipe_overrides, model_options)
        self.model = create_segmenter(model, self.recipe, num_classes, in_chans, **options)
        self.miou = MulticlassJaccardIndex(num_classes, ignore_index=IGNORED)
        self.miou_multi_scale = MulticlassJaccardIndex(num_classes, ignore_index=IGNORED)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → class probabilities (N, num_classes, H, W), whole or in windows as the recipe says."""
        return self._probabilities(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy over the pixels that count, the auxiliary head's added; raises NonFiniteLossError."""
        images, labels = labelled(batch)
        main, auxiliary = self.model(images)
        loss = pixel_cross_entropy(main, labels)
        if auxiliary is not None:
            loss = loss + self.recipe.auxiliary_weight * pixel_cross_entropy(auxiliary, labels)
        self.log_training_loss(loss, len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compare one batch's classes; returns them (N, H, W), at the labels' size."""
        images, labels = labelled(batch)
        classes = self._classes(self(images), labels)
        if self.counted(batch_idx):
            self.miou.update(classes, labels)
        return classes

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation, and with the mean probabilities over the recipe's scales and their mirror images."""
        self.validation_step(batch, batch_idx, dataloader_idx)
        images, labels = labelled(batch)
        classes = self._classes(self._multi_scale(images), labels)
        if self.counted(batch_idx):
            self.miou_multi_scale.update(classes, labels)

    def measures(self) -> dict[str, Tensor]:
        """Mean intersection over union in percent; in tests that of several scales too."""
        metrics = {"miou": self.miou} | ({"miou_ms": self.miou_multi_scale} if self.trainer.testing else {})
        found = {name: 100 * metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return found

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Classes (N, H, W) of a batch's images."""
        probabilities: Tensor = self(images_of(batch))
        return probabilities.argmax(1)

    def share_of_peak(self, step: int, steps: int, lr: float) -> float:
        """Learning rate at `step` of `steps` over its peak: the recipe's warm-up and polynomial."""
        recipe = self.recipe
        return warmup_poly(step, steps, recipe.warmup_iterations, recipe.power, recipe.min_lr / lr)

    def allowed(self, side: float) -> int:
        """The side closest to `side` that the head takes."""
        return nearest(side, self.recipe.multiple)

    def _probabilities(self, images: Tensor) -> Tensor:
        if self.recipe.evaluation == "slide":
            return slide(lambda window: self.model(window).main, images, self.recipe.crop).softmax(1)
        logits: Tensor = self.model(images).main
        return logits.softmax(1)

    def _multi_scale(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        total = torch.zeros(())
        for ratio in self.recipe.multi_scale:
            size = [self.allowed(ratio * side) for side in (height, width)]
            scaled = F.interpolate(images, size=size, mode="bilinear", antialias=ratio < 1)
            for mirrored in (False, True):
                found = self._probabilities(scaled.flip(-1) if mirrored else scaled)
                found = found.flip(-1) if mirrored else found
                total = total.to(found) + self._resize(found, (height, width))
        return total / (2 * len(self.recipe.multi_scale))

    def _classes(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return self._resize(probabilities, labels.shape[-2:]).argmax(1)

    def _resize(self, probabilities: Tensor, size: Sequence[int]) -> Tensor:
        if probabilities.shape[-2:] == torch.Size(size):
            return probabilities
        return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=self.recipe.align_corners)


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels that count of logits (N, classes, H, W) and labels (N, H, W); 0 where none does."""
    counted = (labels != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / counted


def slide(predict: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int]) -> Tensor:
    """Mean over all windows that see a pixel of what `predict` gives for each (N, C, h, w) of images (N, C, H, W)."""
    height, width = images.shape[-2:]
    total, seen = torch.zeros(()), images.new_zeros(1, 1, height, width)
    for top in _starts(height, window[0]):
        for left in _starts(width, window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            found = predict(images[..., rows, columns])
            if total.ndim == 0:
                total = found.new_zeros(len(images), found.shape[1], height, width)
            total[..., rows, columns] += found
            seen[..., rows, columns] += 1
    return total / seen


def _starts(length: int, window: int) -> Iterator[int]:
    """First pixels of the fewest windows that cover a side and overlap as they should; the last ends where it does."""
    step = max(1, round(window * (1 - OVERLAP)))
    for start in range(0, max(length - window, 0) + step, step):
        yield max(0, min(start, length - window))
