"""What every data set of this package looks like from outside: a LightningDataModule with a few facts about itself."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from replk_lightning.data.samplers import EvaluationShare, TrainShare
from replk_lightning.distributed import process


class DataError(ValueError):
    """A data set cannot be used; the message is one sentence that names it and the remedy."""


@dataclass(frozen=True)
class Splits:
    """What a data set knows once it is read.

    Datasets give `(image, label)` samples, or whole collated batches from `__getitems__`.
    `train_size` is None for streams of unknown length. `fingerprint` is a function: it may have to look at every file.
    `class_names` are in the order of the labels; None where the data do not say them.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    num_classes: int
    train_size: int | None
    fingerprint: Callable[[], str]
    class_names: tuple[str, ...] | None = None


class EvaluationLoader(DataLoader[Any]):
    """Batches without the samples that cannot be read, which its dataset gives as None.

    A batch of nothing else is left out. So that several processes take equally many steps, each then gives its last
    batch, or the first sample of the set, as often again, which does not count: `own_batches` says from where on.
    """

    own_batches: int | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch promises its own iterator, which nobody needs
        self.own_batches = self.sampler.own_batches if isinstance(self.sampler, EvaluationShare) else None
        return self._readable(super().__iter__(), self.own_batches or 0)

    def _readable(self, batches: Iterator[Any], own: int) -> Iterator[Any]:
        last, left_out = None, 0
        for number, batch in enumerate(batches):
            if batch is not None:
                last = batch
                yield batch
                continue
            left_out += 1
            if number < own:
                assert self.own_batches is not None
                self.own_batches -= 1
        if left_out and last is None:
            last = self._first()
        for _ in range(left_out if process()[1] > 1 else 0):
            yield last

    def _first(self) -> Any:
        """A batch of the first sample that can be read. Raises DataError if there is none."""
        data: Any = self.dataset
        for index in range(len(data)):
            batch = self.collate_fn(data.__getitems__([index]) if hasattr(data, "__getitems__") else [data[index]])
            if batch is not None:
                return batch
        raise DataError(f"None of the {len(data)} images for validation can be read.")


def collate_readable(collate: Callable[[Any], Any], samples: Iterable[Any]) -> Any:
    """A batch of the samples that are not None; None if there are none."""
    readable = [sample for sample in samples if sample is not None]
    return collate(readable) if readable else None


class ImageData(lightning.LightningDataModule):
    """Base of all image-classification sets: subclasses say how to `load`, this class makes the loaders.

    Loaders give `(images, labels)`: float32 `(N, in_chans, image_size, image_size)` and int64 `(N,)`.
    `batch_size` is per device and may be changed until the loaders are made.

    Every random choice follows torch's global generator: the sampler and the workers take their seeds from it once an
    epoch, so restoring its state at an epoch's start brings back that epoch's order. Training drops the last incomplete
    batch (one image would break BatchNorm, an odd number mixup) unless it is the only one. In validation an image that
    cannot be read is named and left out.

    Several processes share every split, streams too (see samplers.py): the batches of a training step are together what
    one process would see, and none of the validation images counts twice.
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
    def eval_batch_size(self) -> int:
        """Images of a batch in validation."""
        return self.batch_size

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
    def class_names(self) -> tuple[str, ...] | None:
        """What the labels 0, 1, … are called; None where the data do not say it."""
        return self.splits.class_names

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
        if size is None or isinstance(train, IterableDataset):  # streams shuffle and share themselves
            return self._loader(train, drop_last=size is None or size >= self.batch_size)
        share = TrainShare(size)
        if not len(share):
            raise DataError(f"{self.name} has {size} training images, fewer than processes: take fewer devices.")
        return self._loader(train, sampler=share, drop_last=len(share) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once, in a fixed order."""
        val = self.splits.val
        if isinstance(val, IterableDataset):
            return self._loader(val)
        share = EvaluationShare(len(val), self.eval_batch_size)  # type: ignore[arg-type] # sets of known length
        return self._evaluation_loader(val, sampler=share)

    def test_dataloader(self) -> DataLoader[Any]:
        """The validation images: as in the paper, no other labelled split exists."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation images again, in their order; Lightning shares them."""
        val = self.splits.val
        if isinstance(val, IterableDataset):
            return self._loader(val, batch_size=self.eval_batch_size)
        return self._evaluation_loader(val)

    def _evaluation_loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        collate = self.collate
        if not hasattr(dataset, "__getitems__"):  # those that give whole batches leave out themselves
            collate = partial(collate_readable, collate or default_collate)
        options = {"batch_size": self.eval_batch_size, "collate_fn": collate} | options
        return self._loader(dataset, EvaluationLoader, **options)

    def _loader(
        self, dataset: Dataset[Any], loader_class: type[DataLoader[Any]] | None = None, **options: Any
    ) -> DataLoader[Any]:
        # Workers live for one epoch: those that live on keep their own random state, which no checkpoint can hold.
        shared = {"batch_size": self.batch_size, "num_workers": self.num_workers, "collate_fn": self.collate}
        make = loader_class or self.loader_class
        return make(dataset, **(shared | {"pin_memory": torch.cuda.is_available()} | options))


def fingerprint(parts: Iterable[bytes]) -> str:
    """First 16 hexadecimal digits of SHA-256 over the parts in order, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
