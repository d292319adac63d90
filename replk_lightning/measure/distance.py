"""Accuracy over distance: mean intersection over union of pixels by how far they lie from the nearest outline.

Not in the paper. If large kernels help because they see far (Sec. 5.1, Remark 4), they help most where what tells a
pixel's class is far away: deep inside an object, or far out on the ground.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from replk_lightning.data.segmentation import IGNORED
from replk_lightning.tasks.segment import SegmentTask


def distance_to_outline(labels: Tensor) -> Tensor:
    """How far it is from a pixel's middle to the middle of the nearest pixel of another class in the same picture.

    Labels (N, H, W) of any whole-number type → float32 (N, H, W) in pixels, on the CPU: 1 beside a straight outline,
    infinite where the picture holds no other class. What lies under IGNORED pixels is unknown, so that they are no
    other class to their neighbours, and are themselves infinitely far. A picture's edge is no outline.
    """
    found = torch.full(labels.shape, torch.inf)
    for distances, picture in zip(found.numpy(), labels.cpu().numpy(), strict=True):
        counted = picture != IGNORED
        classes = np.unique(picture[counted])
        for each in classes if len(classes) > 1 else ():
            own = picture == each
            distances[own] = distance_transform_edt(own | ~counted)[own]
    return found


def distance_to_outline_by_definition(labels: Tensor) -> Tensor:
    """The same, pixel by pixel, for small pictures."""
    found = torch.full(labels.shape, torch.inf)
    for distances, picture in zip(found, labels.cpu(), strict=True):
        for y, x in (picture != IGNORED).nonzero().tolist():
            others = ((picture != picture[y, x]) & (picture != IGNORED)).nonzero()
            if len(others):
                distances[y, x] = (others - torch.tensor([y, x])).float().norm(dim=1).min()
    return found


class DistanceBands(Callback):
    """Counts in a validation which class each pixel is given, by the band of distance that it lies in.

    Args:
        edges: lower edges in pixels of the labels, ascending; the last band has no end.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.bands = list(pairwise([*edges, torch.inf]))
        self.confusion = torch.zeros(0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew."""
        classes = pl_module.hparams["num_classes"]
        self._counts = [
            MulticlassConfusionMatrix(classes, ignore_index=IGNORED).to(pl_module.device) for _ in self.bands
        ]

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch's classes, as `SegmentTask.validation_step` returns them."""
        assert isinstance(pl_module, SegmentTask)
        if pl_module.counted(batch_idx):
            _, labels = batch
            distances = distance_to_outline(labels).to(labels.device)
            for (low, high), counts in zip(self.bands, self._counts, strict=True):
                # infinitely far is in the band without an end
                inside = (distances >= low) & ((distances < high) | (high == torch.inf))
                counts.update(outputs, labels.masked_fill(~inside, IGNORED))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set `confusion`, int64 (bands, classes that are right, classes that are found), of all processes together."""
        self.confusion = torch.stack([counts.compute() for counts in self._counts]).cpu()


def miou_by_distance(trainer: L.Trainer, task: SegmentTask, data: Any, edges: Sequence[float]) -> dict[str, float]:
    """One more validation of `task` on `data`, of whose pixels every band is looked at by itself.

    `data` is whatever `trainer.validate` takes; bands are those of `DistanceBands`. Returns in percent, by a band's
    lower edge, `miou_EDGE` over the classes that there are in the band, and `share_EDGE` of all pixels that count; a
    band that no pixel lies in has no mIoU. A single band from 0 on gives what validation gives, but for classes that no
    label names at all: validation has them at zero where they are found.
    """
    bands = DistanceBands(edges)
    trainer.callbacks.append(bands)  # type: ignore[attr-defined] # set from outside
    try:
        trainer.validate(task, data, verbose=False)
    finally:
        trainer.callbacks.remove(bands)  # type: ignore[attr-defined]
    pixels = bands.confusion.sum(dim=(1, 2))
    found: dict[str, float] = {}
    for edge, confusion, share in zip(edges, bands.confusion, pixels / pixels.sum().clamp(min=1), strict=True):
        found |= {f"miou_{edge:g}": 100 * miou(confusion)} if confusion.any() else {}
        found[f"share_{edge:g}"] = 100 * share.item()
    return found


def miou(confusion: Tensor) -> float:
    """Mean intersection over union of a confusion matrix (classes that are right, classes that are found), in [0, 1].

    The mean is over the classes that are right somewhere.
    """
    right, found, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    there = right > 0
    return (both[there].double() / (right + found - both)[there]).mean().item()
