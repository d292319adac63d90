"""Streams of encoded images: shuffled through a buffer, split among processes and workers, equally long for all."""

from collections.abc import Iterator
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from replk_lightning.data.augment import Transform
from replk_lightning.data.base import DataError
from replk_lightning.data.decoding import Encoded, UnreadableImageError, decode_rgb, warn_unreadable
from replk_lightning.distributed import of_all, of_rank_0, process

if TYPE_CHECKING:
    import datasets


class DecodedStream(IterableDataset[tuple[Tensor, int]]):
    """`(image, label)` of every row of a `datasets.IterableDataset` whose images are not decoded yet.

    A training stream of known size starts again at its end, with another order, and its loader stops it: all
    processes of a distributed run then have equally many batches, and none waits for another for ever.
    Where workers have unequal shares, a few images of an epoch come twice and as many not at all.
    Unreadable images are warned about and left out, in every pass.

    Args:
        rows: of the columns `image` and `label`, shuffled through a buffer if for training.
        size: rows over all processes; None if unknown.
        training: whether the order changes from epoch to epoch.
    """

    def __init__(
        self, rows: "datasets.IterableDataset", name: str, transform: Transform, size: int | None, training: bool
    ) -> None:
        self.rows = rows
        self.mine = rows
        self.name = name
        self.transform = transform
        self.size = size
        self.training = training
        self.restarts = training and size is not None
        self.epoch = 0

    def begin(self, epoch: int, rank: int, processes: int) -> None:
        """Take this process's share of the rows, in the order that belongs to `epoch`."""
        from datasets.distributed import split_dataset_by_node

        if processes > 1 and self.training and self.size is None:
            raise DataError(
                f"{self.name} does not say how many training images it has, so {processes} processes cannot share its "
                "stream evenly: give it as train_size, or use streaming=False."
            )
        self.mine = split_dataset_by_node(self.rows, rank, processes)
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        decoded = 0
        for epoch in count(self.epoch):
            self.mine.set_epoch(epoch)
            before = decoded
            for row in self.mine:  # `datasets` gives each worker its own shards
                sample = encode(row, self.name)
                try:
                    image = decode_rgb(sample.content)
                except UnreadableImageError as reason:
                    warn_unreadable(sample.name, reason)
                    continue
                decoded += 1
                yield self.transform(image), sample.label
            if not self.restarts:
                return
            if decoded == before:
                raise DataError(f"Of the stream's share for one worker, no image of {self.name} can be read.")


class StreamLoader(DataLoader[Any]):
    """Batches of a DecodedStream; every pass draws its order from torch's generator, of rank 0 for all processes.

    In evaluation nobody knows how long the others' shares are: a process that has come to its end gives its last batch
    again until all have, and `own_batches` says from which one on.
    """

    own_batches: int | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch promises its own iterator, which nobody needs
        stream, (rank, processes) = self._stream, process()
        epoch = of_rank_0(int(torch.randint(1, 2**31 - 1, ()))) if stream.training else 0
        stream.begin(epoch, rank, processes)
        if processes > 1 and not stream.training:
            return self._in_step(super().__iter__())
        return islice(super().__iter__(), len(self) if stream.restarts else None)

    def _in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        self.own_batches, last = None, None
        for number in count():
            batch = next(batches, None)
            going = of_all(batch is not None)
            if not any(going):
                return
            if number == 0 and not all(going):
                raise DataError(f"{self._stream.name} has too few validation images: take fewer devices.")
            if batch is None and self.own_batches is None:
                self.own_batches = number
            last = last if batch is None else batch
            yield last

    def __len__(self) -> int:
        """Batches of an epoch in training; raises TypeError where that is unknown."""
        stream, (_, processes) = self._stream, process()
        if not stream.restarts:
            raise TypeError(f"{stream.name} is a stream of unknown length")
        assert stream.size is not None
        assert self.batch_size is not None
        return max(1, stream.size // (self.batch_size * processes))

    @property
    def _stream(self) -> DecodedStream:
        assert isinstance(self.dataset, DecodedStream)
        return self.dataset


def encode(row: dict[str, Any], where: str) -> Encoded:
    """A row of the columns `image` (bytes, path or both; undecoded) and `label`; `where` completes its name."""
    image = row["image"] or {}
    content, path = image.get("bytes"), image.get("path")
    if content is None:
        content = path or b""  # empty: unreadable, as it should be
    return Encoded(f"{path or 'without a name'} in {where}", content, row["label"])
