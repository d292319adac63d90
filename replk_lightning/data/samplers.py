"""How the processes of a distributed run share a set: which image is whose, in training and in validation.

Shapes: N images, P processes, B of a batch of one process.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from replk_lightning.distributed import of_rank_0, process


class _Share(DistributedSampler[int]):
    """Of `size` images those of this process; Lightning leaves a DistributedSampler as it finds it."""

    def __init__(self, size: int) -> None:
        rank, processes = process()
        super().__init__(range(size), num_replicas=processes, rank=rank)  # type: ignore[arg-type] # only its length
        self.size = size


class TrainShare(_Share):
    """Every P-th of all images in the order that torch's own RandomSampler would take with rank 0's generator.

    So the P batches of a step are together one process's batch of B × P images. The last N modulo P images of the order
    are left out, so that all processes take equally many steps.
    """

    def order(self) -> Tensor:
        """Numbers of all images (N,), the same in every process."""
        seed = of_rank_0(int(torch.empty((), dtype=torch.int64).random_()))
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.size // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][: len(self)].tolist())


class EvaluationShare(_Share):
    """Every P-th image, none of them twice.

    All processes have to take equally many steps, as their nets may wait for each other in each. Where this one's
    images fill one batch of `batch_size` less than the largest share does, its first image, or the set's, is seen
    again in a batch of its own, which `counts` says to leave out.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        super().__init__(size)
        self.own = list(range(self.rank, size, self.num_replicas))
        self.own_batches = -(-len(self.own) // batch_size)
        most = -(-size // self.num_replicas)
        self.filler = (self.own or [0])[: -(-most // batch_size) - self.own_batches]

    def __len__(self) -> int:
        return len(self.own) + len(self.filler)

    def __iter__(self) -> Iterator[int]:
        return iter(self.own + self.filler)


def counts(loader: DataLoader[Any], number: int) -> bool:
    """Whether batch `number` that `loader` gives in evaluation is this process's own and not there to fill up."""
    own: int | None = getattr(loader, "own_batches", None)
    if own is None:
        own = getattr(getattr(loader, "sampler", None), "own_batches", None)
    return own is None or number < own
