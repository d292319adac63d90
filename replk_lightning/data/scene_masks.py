"""Scenes of several shapes with a class for every pixel: what scale `small` segments."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from replk_lightning.data.base import Splits, fingerprint
from replk_lightning.data.scenes import (
    GROUND_LEVEL,
    MEAN,
    NAMES,
    STD,
    Composed,
    compose_dense,
    largest_shift,
    normalise,
)
from replk_lightning.data.segmentation import IGNORED, SegmentationData
from replk_lightning.data.shapes import SHAPES, ShapeName
from replk_lightning.data.tensor_images import TensorImages, unchanged

OUTSIDE = round(255 * GROUND_LEVEL)
"""What moves in with a shift, for pixels and labels; no class is as large."""


def labels_of(scenes: Composed) -> Tensor:
    """uint8 (N, H, W): 0 behind, a shape's class + 1 on it."""
    classes = torch.cat([torch.zeros(len(scenes.images), 1, dtype=torch.long), scenes.classes + 1], dim=1)  # N, 1 + M
    flat = scenes.instances.flatten(1).long()  # N, H W
    return classes.gather(1, flat).view(scenes.instances.shape).to(torch.uint8)


class MaskedImages(TensorImages):
    """Images and labels of scenes, shifted together: float32 (B, 3, H, W) and int64 (B, H, W)."""

    def __init__(self, scenes: Composed, shift: int = 0) -> None:
        together = torch.cat([scenes.images, labels_of(scenes)[:, None]], dim=1)  # the label is the fourth channel
        super().__init__(together, torch.zeros(len(together)), shift, background=OUTSIDE)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        together, _ = super().__getitems__(indices)
        labels = together[:, 3].long()
        return normalise(together[:, :3]), labels.masked_fill(labels == OUTSIDE, IGNORED)


class SceneMasks(SegmentationData):
    """Scenes of up to three digits, or of one solid blob or garment; what lies behind is class 0.

    Nothing is ignored but what a shift moves in.

    Args:
        shapes: "digits", 11 classes; or "lobes", nine, or "garments", 11, in scenes whose grounds and shapes look alike
            (see scenes.py).
        train_images, test_images: how many, the first of 12,000 and of 4,000.
        augment: shift scenes of digits in training by up to an eighth of their size; solid ones stay.

    Images are float32 (N, 3, image_size, image_size), labels int64 (N, image_size, image_size), in validation too.
    """

    collate = staticmethod(unchanged)
    mean, std = MEAN, STD

    def __init__(
        self,
        shapes: ShapeName = "digits",
        image_size: int = 96,
        batch_size: int = 32,
        train_images: int = 8000,
        test_images: int = 4000,
        augment: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            f"{NAMES[shapes]}-masks",
            in_chans=3,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.shapes = shapes
        self.train_images, self.test_images, self.augment = train_images, test_images, augment

    def load(self) -> Splits:
        """Compose both splits, or take them from the cache."""
        train = compose_dense("train", self.image_size, self.shapes, self.train_images)
        test = compose_dense("test", self.image_size, self.shapes, self.test_images)
        parts = [tensor.numpy().tobytes() for scenes in (train, test) for tensor in (scenes.images, labels_of(scenes))]
        classes = ("background", *SHAPES[self.shapes].names)
        return Splits(
            MaskedImages(train, largest_shift(self.shapes, self.image_size) if self.augment else 0),
            MaskedImages(test),
            num_classes=len(classes),
            train_size=len(train.images),
            fingerprint=partial(fingerprint, parts),
            class_names=classes,
        )

    @property
    def eval_batch_size(self) -> int:
        """Whole batches, for all scenes have one size."""
        return self.batch_size
