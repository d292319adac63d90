"""Scenes of several shapes, each with its box and its mask: detection without a download (see scenes.py)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from replk_lightning.data.base import ImageData, Splits, fingerprint
from replk_lightning.data.detection import Sample, Target, as_lists
from replk_lightning.data.scenes import (
    GROUND_LEVEL,
    MEAN,
    NAMES,
    STD,
    Composed,
    box_of,
    compose_dense,
    largest_shift,
    normalise,
)
from replk_lightning.data.shapes import SHAPES, ShapeName


class SceneObjects(ImageData):
    """Scenes of up to three digits, or of one solid blob or garment, over and filled with photographs; the classes are
    the shapes'.

    Args:
        shapes: "digits", "lobes" or "garments".
        train_images, test_images: how many scenes, the first of 12,000 and of 4,000.
        augment: shift scenes of digits in training by up to an eighth of their size, boxes and masks cut with them;
            solid ones stay. A digit's mirror image is none, so nothing is flipped.

    Loaders give a list of images, float32 (3, image_size, image_size), and a list of targets (see boxes.py).
    """

    collate = staticmethod(as_lists)
    mean, std = MEAN, STD

    def __init__(
        self,
        shapes: ShapeName = "digits",
        image_size: int = 96,
        batch_size: int = 16,
        train_images: int = 8000,
        test_images: int = 4000,
        augment: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            f"{NAMES[shapes]}-objects",
            in_chans=3,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.shapes = shapes
        self.train_images, self.test_images = train_images, test_images
        self.augment = augment

    def load(self) -> Splits:
        """Compose both splits, or take them from the cache."""
        train = compose_dense("train", self.image_size, self.shapes, self.train_images)
        test = compose_dense("test", self.image_size, self.shapes, self.test_images)
        parts = [tensor.numpy().tobytes() for scenes in (train, test) for tensor in scenes]
        return Splits(
            ScenesWithObjects(train, largest_shift(self.shapes, self.image_size) if self.augment else 0),
            ScenesWithObjects(test),
            num_classes=len(SHAPES[self.shapes].names),
            train_size=len(train.images),
            fingerprint=partial(fingerprint, parts),
            class_names=SHAPES[self.shapes].names,
        )


class ScenesWithObjects(Dataset[Sample]):
    """Scenes and their targets, shifted by up to `shift` pixels drawn from torch's global generator."""

    def __init__(self, scenes: Composed, shift: int = 0) -> None:
        self.images = F.pad(scenes.images, (shift,) * 4, value=round(255 * GROUND_LEVEL))  # N, 3, H + 2s, W + 2s
        self.instances = F.pad(scenes.instances, (shift,) * 4)  # N, H + 2s, W + 2s
        self.classes = scenes.classes
        self.shift = shift
        self.size = scenes.images.shape[-2:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        top, left = torch.randint(2 * self.shift + 1, (2,)).tolist() if self.shift else (0, 0)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        target = target_of(self.instances[index, rows, columns], self.classes[index])
        return normalise(self.images[index, :, rows, columns]), target


def target_of(instances: Tensor, classes: Tensor) -> Target:
    """Boxes, labels and masks of what is seen in an instance map (H, W) of objects of these classes (M,)."""
    masks = [instances == number + 1 for number in range(int((classes >= 0).sum()))]
    seen = [number for number, mask in enumerate(masks) if mask.any()]
    return {
        "boxes": _stacked([box_of(masks[number]).float() for number in seen], (4,)),
        "labels": classes[seen],
        "masks": _stacked([masks[number].to(torch.uint8) for number in seen], tuple(instances.shape), torch.uint8),
    }


def _stacked(parts: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.stack(list(parts)) if parts else torch.zeros(0, *shape, dtype=dtype)
