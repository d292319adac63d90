"""Copies of nets that torch alone does not copy."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def copied(model: Net, shared: Iterable[object] = ()) -> Net:
    """A deep copy, also of a model that holds weights computed from others (pruned ones), which torch does not copy.

    What is `shared` stays the same objects.
    """
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    return copy.deepcopy(model, memo | {id(each): each for each in shared})
