"""What rewriting a net must not forget: the state of the process, and what modules carry beside their parameters."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_DEVICES = ("cpu", "cuda", "mps", "xpu")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COMPUTE: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (prune.BasePruningMethod, "_tensor_name", prune.remove),
    (WeightNorm, "name", remove_weight_norm),
    (SpectralNorm, "name", remove_spectral_norm),
)
"""Hooks that compute a weight from others; where they keep its name; what makes it a plain one."""

Net = TypeVar("Net", bound=nn.Module)
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@contextmanager
def plain_state() -> Iterator[None]:
    """Neither autocast, inference mode nor gradients: tensors keep their dtypes, and the new ones can be trained."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


def with_parameters(layer: Layer, weight: Tensor, bias: Tensor, sources: Iterable[nn.Module]) -> Layer:
    """A copy of a layer with other parameters, in the dtype of its own; they are trained if any of the sources' are.

    The layer is left alone, for it may be in use elsewhere.
    """
    learns = any(parameter.requires_grad for source in sources for parameter in source.parameters())
    dtype, layer = layer.weight.dtype, copy.deepcopy(layer)
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=learns)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=learns)
    return layer


def refuse_hooks(name: str, module: nn.Module) -> None:
    """Raise ValueError if the module called `name`, or one inside it, carries hooks of a user: it is to be replaced.

    A `forward` that was set on a module itself is one too.
    """
    for inner, each in module.named_modules(prefix=name):
        hooks = [hook for kind in HOOKS for hook in getattr(each, kind).values()]
        if "forward" in vars(each):
            raise ValueError(f"{inner} has a forward of its own, which folding would lose: remove it")
        if not all(map(_computes, hooks)):
            raise ValueError(
                f"{inner} carries hooks, which folding would lose or show other values: remove them, or put them on "
                "the module around it"
            )


def is_plain(module: nn.Module) -> bool:
    """Whether nobody watches what a module gives, by hooks or a forward of its own."""
    return "forward" not in vars(module) and not any(getattr(module, kind) for kind in HOOKS)


def unwatched(model: Net) -> Net:
    """Remove all hooks but those that compute a weight from others, in place; returns the model."""
    for module in model.modules():
        for kind in HOOKS:
            hooks = getattr(module, kind)
            for number in [key for key, hook in hooks.items() if not _computes(hook)]:
                del hooks[number]
    return model


def _computes(hook: object) -> bool:
    return isinstance(hook, tuple(kind for kind, *_ in _COMPUTE))


def settle(model: Net) -> Net:
    """Make weights that are computed from others plain parameters of the same values, in place; returns the model.

    Those that `torch.nn.utils` prunes, parametrizes, or normalises by `weight_norm` or `spectral_norm`. The model is in
    eval mode.
    """
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            for kind, name, remove in _COMPUTE:
                if isinstance(hook, kind):
                    _settle(module, getattr(hook, name), remove)
        if parametrize.is_parametrized(module):
            _settle_parametrized(module)
    return model


def _settle(module: nn.Module, name: str, remove: Callable[..., Any]) -> None:
    learns = False
    for key, parameter in list(module.named_parameters(recurse=False)):
        if key.startswith(f"{name}_"):
            learns |= parameter.requires_grad
            # removing writes into the original, which other modules may share
            setattr(module, key, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    remove(module, name)
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(value, requires_grad=learns))


def _settle_parametrized(module: nn.Module) -> None:
    # torch's remove_parametrizations would take the weight from the class, which a copy shares with its model
    owners: dict[str, nn.Module] = dict(module.get_submodule("parametrizations").named_children())
    values = {name: getattr(module, name).detach().clone() for name in owners}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, owner in owners.items():
        learns = any(parameter.requires_grad for parameter in owner.parameters())
        module.register_parameter(name, nn.Parameter(values[name], requires_grad=learns))
