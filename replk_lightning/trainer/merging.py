"""Merged copies of the modules of a net that train in branches, to stand in for them for a while."""

from collections.abc import Iterator
from typing import NamedTuple

from timm.utils import reparameterize_model
from torch import nn

from native.copying import copied
from replk_lightning.distributed import take_over_from_rank_0
from replk_lightning.models.rewriting import HOOKS, plain_state, refuse_hooks

MERGE = ("fuse", "reparameterize", "switch_to_deploy")
"""Methods that timm's `reparameterize_model` calls, the first that there is: in place, or with what takes the place."""


class Place(NamedTuple):
    """Where a module stands, and its merged copy."""

    parent: nn.Module
    name: str
    module: nn.Module
    copy: nn.Module


class Merged:
    """Merged copies of what can be merged in `net`, which is left alone.

    With `shares_buffers` they are of rank 0's statistics in all processes, which all ask, and so is the net then:
    DistributedDataParallel does the same before each forward pass, but of the modules that it finds in place.

    Raises ValueError if a part of what is merged carries hooks: they would be lost.
    """

    @plain_state()
    def __init__(self, net: nn.Module, shares_buffers: bool = False) -> None:
        copies: dict[nn.Module, nn.Module] = {}
        self.places: list[Place] = []
        for parent, name, path in _places(net, "", set()):
            module = parent._modules[name]
            assert module is not None
            if module not in copies:
                if shares_buffers:
                    take_over_from_rank_0(module.buffers())
                copies[module] = _merged(module, path)
            self.places.append(Place(parent, name, module, copies[module]))

    def put(self) -> None:
        """Put the copies into the net."""
        for place in self.places:
            place.parent._modules[place.name] = place.copy

    def take_away(self) -> None:
        """Put the modules themselves back, as the same objects in the same order."""
        for place in self.places:
            place.parent._modules[place.name] = place.module


def _places(parent: nn.Module, path: str, seen: set[nn.Module]) -> Iterator[tuple[nn.Module, str, str]]:
    """Parent, name and path of the outermost modules that can be merged; a shared one at all its places."""
    seen.add(parent)
    for name, child in parent._modules.items():
        inner = f"{path}.{name}".lstrip(".")
        if child is not None and _method(child):
            yield parent, name, inner
        elif child is not None and child not in seen:
            yield from _places(child, inner, seen)


def _method(module: nn.Module) -> str | None:
    # a submodule may have such a name, too
    return next((name for name in MERGE if callable(getattr(type(module), name, None))), None)


def _merged(module: nn.Module, path: str) -> nn.Module:
    """A merged copy, whose own hooks are the module's."""
    for name, child in module.named_children():
        refuse_hooks(f"{path}.{name}", child)
    copy = copied(module, (getattr(each, kind) for each in module.modules() for kind in HOOKS))
    method = _method(copy)
    assert method is not None
    made = getattr(copy, method)()
    merged: nn.Module = reparameterize_model(made if isinstance(made, nn.Module) else copy, inplace=True)
    return merged.train(module.training)
