"""Cityscapes in its official folders: 2,975 images to train and 500 to validate on, 19 classes (Tables 3, 4 and 7)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import Cityscapes as TorchvisionCityscapes

from replk_lightning.data.base import DataError
from replk_lightning.data.folders import walk
from replk_lightning.data.segmentation import IGNORED, Labelled, LabelledFiles, SegmentAugmentation

IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE, LABEL = "_leftimg8bit.png", "_gtFine_labelIds.png"
"""How the names of files end, an image's in lower case."""


def train_ids() -> np.ndarray:
    """uint8 (256,): the training id, 0 to 18, of every label id; IGNORED where there is none."""
    ids = np.full(256, IGNORED, np.uint8)
    for entry in TorchvisionCityscapes.classes:
        if 0 <= entry.train_id < IGNORED:
            ids[entry.id] = entry.train_id
    return ids


class Cityscapes(LabelledFiles):
    """`root/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and `root/gtFine/…/*_gtFine_labelIds.png`."""

    class_count = 19
    names = tuple(entry.name for entry in TorchvisionCityscapes.classes if 0 <= entry.train_id < IGNORED)

    def __init__(
        self, root: str | Path, augmentation: SegmentAugmentation, batch_size: int = 2, num_workers: int = 4
    ) -> None:
        super().__init__("cityscapes", augmentation, batch_size, num_workers)
        self.root = Path(root).expanduser()
        self.classes = train_ids()

    def find(self, train: bool) -> Sequence[Labelled]:
        """Pairs of files, sorted by name."""
        split = "train" if train else "val"
        folder = self.root / IMAGES / split
        images = sorted(folder / name for name in walk(folder, [IMAGE]).names)
        if not images:
            raise DataError(
                f"{self.root} holds no Cityscapes images: unpack leftImg8bit_trainvaltest.zip and "
                f"gtFine_trainvaltest.zip from cityscapes-dataset.com there, so that {IMAGES}/{split} exists."
            )
        stems = [str(path.relative_to(folder))[: -len(IMAGE)] for path in images]
        labels = [self.root / LABELS / split / (stem + LABEL) for stem in stems]
        missing = [path for path in labels if not path.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is missing: unpack gtFine_trainvaltest.zip beside {IMAGES}.")
        return [Labelled(path.name, str(path), str(label)) for path, label in zip(images, labels, strict=True)]
