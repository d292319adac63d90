"""Photographs in folders, one folder a class: how ImageNet is usually unpacked."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from replk_lightning.data.augment import Augmentation
from replk_lightning.data.base import DataError, ImageData, Splits, fingerprint
from replk_lightning.data.decoding import DecodedImages, Encoded
from replk_lightning.data.folders import Walk, walk

VALIDATION_NAMES = ("val", "validation", "valid", "test")


class ImageFolder(ImageData):
    """`root/train/CLASS/*` and `root/val/CLASS/*` (or `validation`, `valid`, `test`), labelled in alphabetical order.

    Workers seed Python's `random`, which timm's transforms use, from torch's generator; without workers it is the
    global one. The fingerprint is that of the files' names and sizes.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 224,
        batch_size: int = 32,
        augmentation: Augmentation | None = None,
        num_workers: int = 8,
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(
            f"imagefolder-{self.root.resolve().name}",
            in_chans=3,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.augmentation = augmentation or Augmentation()

    def load(self) -> Splits:
        """List the files; no image is opened yet."""
        train, val = walk(find_split(self.root, ("train",))), walk(find_split(self.root, VALIDATION_NAMES))
        classes = list_classes(train)
        unknown = sorted(set(list_classes(val)) - set(classes))
        if unknown:
            raise DataError(
                f"{val.root} holds the class {unknown[0]!r} that {train.root} lacks; both need the same class folders."
            )
        train_files, val_files = ImageFiles(train, classes), ImageFiles(val, classes)
        seen = set(train_files.labels.tolist())
        if empty := [name for label, name in enumerate(classes) if label not in seen]:
            rank_zero_warn(
                f"{train.root}: no picture of {len(empty)} classes, as {empty[0]!r}, which cannot be learned."
            )
        return Splits(
            DecodedImages(train_files, self.augmentation.train_transform(self.image_size), train=True),
            DecodedImages(val_files, self.augmentation.eval_transform(self.image_size), train=False),
            num_classes=len(classes),
            train_size=len(train_files),
            fingerprint=partial(fingerprint_files, train_files, val_files),
            class_names=tuple(classes),
        )


class ImageFiles:
    """The pictures of every class that a walk has found, sorted by class, folder and name.

    Warns of pictures in no class's folder, which are left out, and raises DataError if there are no others. Names lie
    in one array: worker processes would copy a million Python strings, page by page, as they count references to them.
    """

    def __init__(self, found: Walk, classes: list[str]) -> None:
        of_classes = (name for name in found.names if os.sep in name)
        names = sorted(of_classes, key=lambda name: (name.partition(os.sep)[0], *os.path.split(name)))
        if apart := len(found.names) - len(names):
            rank_zero_warn(f"{found.root}: left out {apart} pictures that lie in no class's folder.")
        labels = {name: label for label, name in enumerate(classes)}
        if not names:
            raise DataError(
                f"{found.root} holds no image: put files such as {found.root / classes[0] / '1.jpg'} there."
            )
        self.root = found.root
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = np.array([labels[name.partition(os.sep)[0]] for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Encoded:
        path = str(self.root / os.fsdecode(self.names[index]))
        return Encoded(path, path, int(self.labels[index]))

    def names_and_sizes(self) -> Iterator[bytes]:
        """Alternately a file's name, relative to the root, and its size in bytes."""
        for name in self.names:
            yield os.fsencode(Path(os.fsdecode(name)).as_posix())
            yield str((self.root / os.fsdecode(name)).stat().st_size).encode()


def fingerprint_files(*splits: ImageFiles) -> str:
    """Fingerprint of the names and sizes in all splits; reading the pictures would take hours."""
    return fingerprint(part for files in splits for part in files.names_and_sizes())


def find_split(root: Path, names: tuple[str, ...]) -> Path:
    """The first of `root/names` that is a folder. Raises DataError if there is none."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    where = f"{root} lacks the folder {names[0]!r}" if root.is_dir() else f"There is no folder {root}"
    raise DataError(f"{where}: put images into {root / names[0] / 'CLASS'}, one folder a class.")


def list_classes(found: Walk) -> list[str]:
    """Class folders in alphabetical order. Raises DataError if there are none."""
    if not found.folders:
        raise DataError(
            f"{found.root} holds no class folders: put images into {found.root / 'CLASS'}, one folder a class."
        )
    return found.folders
