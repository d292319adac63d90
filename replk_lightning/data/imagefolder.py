"""Photographs in folders, one folder a class: how ImageNet is usually unpacked."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .augment import Augmentation
from .base import DataError, ImageData, Splits, fingerprint
from .reading import DecodedImages, Encoded

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
        train_root, val_root = find_split(self.root, ("train",)), find_split(self.root, VALIDATION_NAMES)
        classes = list_classes(train_root)
        unknown = sorted(set(list_classes(val_root)) - set(classes))
        if unknown:
            raise DataError(
                f"{val_root} holds the class {unknown[0]!r} that {train_root} lacks; both need the same class folders."
            )
        train, val = ImageFiles(train_root, classes), ImageFiles(val_root, classes)
        return Splits(
            DecodedImages(train, self.augmentation.train_transform(self.image_size)),
            DecodedImages(val, self.augmentation.eval_transform(self.image_size)),
            num_classes=len(classes),
            train_size=len(train),
            fingerprint=partial(fingerprint_files, train, val),
        )


class ImageFiles:
    """The image files under `root/CLASS` for every class, sorted by class and name. Raises DataError if there are none.

    Names lie in one array: worker processes would copy a million Python strings, page by page, as they count
    references to them.
    """

    def __init__(self, root: Path, classes: list[str]) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        labels = {name: label for label, name in enumerate(classes)}
        found = make_dataset(root, labels, extensions=IMG_EXTENSIONS, allow_empty=True)
        if not found:
            raise DataError(f"{root} holds no image: put files such as {root / classes[0] / '1.jpg'} there.")
        self.root = root
        self.names = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in found])
        self.labels = np.array([label for _, label in found])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Encoded:
        path = str(self.root / os.fsdecode(self.names[index]))
        return Encoded(path, path, int(self.labels[index]))

    def names_and_sizes(self) -> Iterator[bytes]:
        """Alternately a file's name, relative to the root, and its size in bytes."""
        for name in self.names:
            yield Path(os.fsdecode(name)).as_posix().encode()
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


def list_classes(root: Path) -> list[str]:
    """Class folders in alphabetical order, without hidden ones. Raises DataError if there are none."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{root} holds no class folders: put images into {root / 'CLASS'}, one folder a class.")
    return classes
