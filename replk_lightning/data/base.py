"""What every data set of this package looks like from outside: a LightningDataModule with a few facts about itself."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset


class DataError(ValueError):
    """A data set cannot be used; the message is one sentence that names it and the remedy."""


@dataclass(frozen=True)
class Splits:
    """What a data set knows once it is read.

    Datasets give `(image, label)` samples, or whole collated batches from `__getitems__`.
    `train_size` is None for streams of unknown length. `fingerprint` is a function: it may have to look at every file.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    num_classes: int
    train_size: int | None
    fingerprint: Callable[[], str]


class ImageData(lightning.LightningDataModule):
    """Base of all image-classification sets: subclasses say how to `load`, this class makes the loaders.

    Loaders give `(images, labels)`: float32 `(N, in_chans, image_size, image_size)` and int64 `(N,)`.
    `batch_size` is per device and may be changed until the loaders are made.

    Every random choice follows torch's global generator: the sampler and the workers take their seeds from it once an
    epoch, so restoring its state at an epoch's start brings back that epoch's order. Training drops the last incomplete
    batch (one image would break BatchNorm, an odd number mixup) unless it is the only one.
    """

    name: str
    collate: Callable[[Any], Any] | None = None
    """How samples become a batch; None is torch's own way."""
    loader_class: type[DataLoader[Any]] = DataLoader
    mean: float | None = None
    std: float | None = None
    """What pixels in [0, 1] of all channels are normalised by; None where the recipe says it, as for photographs."""

    def __init__(self, name: str, *, in_chans: int, image_size: int, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.name = name
        self.in_chans = in_chans
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._splits: Splits | None = None

    def at_size(self, image_size: int) -> Self:
        """The same set with images of another size; reads nothing yet."""
        other = copy.copy(self)
        other.image_size, other._splits = image_size, None
        other.__dict__.pop("fingerprint", None)
        return other

    def load(self) -> Splits:
        """Read both splits. Raises DataError when they cannot be had."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data unless that has been done; `stage` is Lightning's and makes no difference."""
        if self._splits is None:
            self._splits = self.load()

    @property
    def splits(self) -> Splits:
        """Both splits, read at the first use."""
        self.setup()
        assert self._splits is not None
        return self._splits

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return self.splits.num_classes

    @property
    def train_size(self) -> int | None:
        """Training images, or None for a stream of unknown length."""
        return self.splits.train_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the data; recorded beside every result."""
        return self.splits.fingerprint()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        train, size = self.splits.train, self.splits.train_size
        shuffle = not isinstance(train, IterableDataset)  # streams shuffle themselves
        return self._loader(train, shuffle=shuffle, drop_last=size is None or size >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once, in a fixed order."""
        return self._loader(self.splits.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """The validation images: as in the paper, no other labelled split exists."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation images again."""
        return self.val_dataloader()

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        # Workers live for one epoch: those that live on keep their own random state, which no checkpoint can hold.
        return self.loader_class(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def fingerprint(parts: Iterable[bytes]) -> str:
    """First 16 hexadecimal digits of SHA-256 over the parts in order, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
