"""Who computes: the backends' names, whether each is usable here and for a call, and what "auto" means.

A backend is a module with ``why_not``, ``forward``, ``grad_input`` and ``grad_weight`` of `native.aten`'s signatures.
One that may gain by it also has ``forward_pair``; where there is none, `native.pair` makes two calls of ``forward``.
"""

import functools
import importlib
from types import ModuleType

from torch import Tensor

from native.geometry import Pair

MODULES = {
    "torch": "native.aten",
    "reference": "native.reference",
    "cpu": "native.cpu",
    "nvrtc": "native.gpu",
    "measured": "native.gpu_auto",
    "emulated": "native.emulator.backend",
}
AUTO = {"cpu": "cpu", "cuda": "measured"}  # device type → the backend tried before torch's own


@functools.cache
def _module(name: str) -> ModuleType | str:
    """The backend's module, or the sentence that says why there is none."""
    if name not in MODULES:
        raise ValueError(f"backend must be one of {', '.join(('auto', *MODULES))}, not {name!r}")
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        return f"the {name} backend cannot be imported: {error}"


def why_not(name: str) -> str | None:
    """Say in one sentence why the backend `name` is unusable on this machine; None if it is usable.

    Raises:
        ValueError: `name` is no backend.
    """
    if name == "auto":
        return None
    module = _module(name)
    return module if isinstance(module, str) else module.why_not()


def backends() -> tuple[str, ...]:
    """Names of the backends usable on this machine, as `depthwise_conv2d` takes them."""
    return tuple(name for name in MODULES if why_not(name) is None)


def resolve(backend: str, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> ModuleType:
    """The module that computes this call.

    Raises:
        ValueError: `backend` is no backend.
        RuntimeError: a backend was named (not "auto") that cannot compute this call.
    """
    name = AUTO.get(x.device.type, "torch") if backend == "auto" else backend
    module = _module(name)
    reason = module if isinstance(module, str) else module.why_not(x, weight, stride, padding, dilation)
    if isinstance(module, ModuleType) and reason is None:
        return module
    if backend == "auto":
        return resolve("torch", x, weight, stride, padding, dilation)
    raise RuntimeError(f"backend {name!r} cannot compute this: {reason}")
