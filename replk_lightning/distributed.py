"""What the processes of a distributed run tell each other; without such a run there is one, of rank 0."""

from collections.abc import Iterable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def process() -> tuple[int, int]:
    """Rank of this process and number of processes in the distributed run, (0, 1) if there is none."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def of_rank_0(value: Value) -> Value:
    """What rank 0 has, in every process; all have to ask."""
    shared = [value]
    if process()[1] > 1:
        dist.broadcast_object_list(shared)
    return shared[0]


def take_over_from_rank_0(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in rank 0, in place; all have to ask."""
    if process()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def mean_over_all(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes; all have to ask."""
    _, processes = process()
    if processes == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / processes


def of_all(value: Value) -> list[Value]:
    """What each process has, by rank; all have to ask. Tensors come from CPUs."""
    found = [value] * process()[1]
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if process()[1] > 1:
        dist.barrier()
