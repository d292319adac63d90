"""Anyone's nets: their depthwise ``nn.Conv2d`` computed by the operator, and nothing else about them changed."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrize

from native import dispatch
from native.arguments import DTYPES
from native.copying import copied
from native.layer_choice import before_timing, choices, operator_wins
from native.ops import DepthwiseConv2d, depthwise_conv2d


class Conv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` that `accelerate` has taken: the same layer, the same name, another way to compute."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros" and operator_wins(self, input, weight, bias):
            geometry: dict[str, Any] = {name: getattr(self, name) for name in ("stride", "padding", "dilation")}
            return depthwise_conv2d(input, weight, bias, **geometry)
        y: Tensor = super()._conv_forward(input, weight, bias)
        return y

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which would put what is returned here into the net itself."""
        raise NotImplementedError("TorchScript does not compile our operator: call native.restore on the net first")


@dataclass(frozen=True)
class Layer:
    """A depthwise layer of a net, and what became of it."""

    name: str  # as `named_modules` says; of a shared layer the first
    module: nn.Module
    reason: str | None  # one sentence, where the layer was left alone

    def row(self) -> tuple[str, str, str, str]:
        """Its name, channels, kernel and stride, and the backend or why there is none."""
        module: Any = self.module
        kernel = "×".join(map(str, _each(module.kernel_size)))
        strides = _each(module.stride)
        stride = "×".join(map(str, strides[: len(set(strides))]))
        how = kernel if stride == "1" else f"{kernel} stride {stride}"
        return self.name or "(the net)", str(module.in_channels), how, self.reason or _backend(module)


@dataclass(frozen=True, repr=False)
class Acceleration:
    """What `accelerate` did; printed, a table of the depthwise layers, with the backends known at that moment."""

    model: nn.Module
    layers: tuple[Layer, ...]

    def __repr__(self) -> str:
        if not self.layers:
            return "There is no depthwise layer in this net."
        rows = [("layer", "channels", "kernel", "backend, or why torch's own"), *(layer.row() for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows]
        taken = sum(layer.reason is None for layer in self.layers)
        return "\n".join([*lines, f"{taken} of {len(self.layers)} depthwise layers ask the operator."])


def accelerate(model: nn.Module, *, inplace: bool = True) -> Acceleration:
    """Let the operator compute every depthwise ``nn.Conv2d`` of a net, wherever it is faster than torch.

    A layer is taken if it is ``nn.Conv2d`` itself (parametrized, pruned, hooked, shared and lazy ones too), has one
    filter a channel and pads with zeros. Its parameters, buffers, hooks, name, repr and mode stay the same objects, so
    that optimizers and DistributedDataParallel need not know; its class becomes a subclass of ``nn.Conv2d``. On a CPU
    the first call of a shape times torch's convolution and the operator, forward and, in training, backward; the
    choice is kept on disk. Results differ from torch's by round-off. In exported and traced files stands torch's
    convolution. What looks for the very class ``nn.Conv2d``, as torch's quantization and TorchScript do, wants
    `restore` first.

    Args:
        model: any net; what is compiled by torch.compile is compiled anew at its next call.
        inplace: whether to change the net itself, or a deep copy.

    Returns:
        The net as `model`, its depthwise layers as `layers` with the reason for each that was left alone; `print` shows
        a table.

    Raises:
        TypeError: `model` is no module, or TorchScript.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, ScriptModule):
        raise TypeError("a net of TorchScript cannot be rewritten: accelerate the net that it was made of")
    if not inplace:
        model = copied(model)
    layers = []
    for name, module in model.named_modules():
        if _is_depthwise(module):
            layers.append(Layer(name, module, _why_not(module)))
            if layers[-1].reason is None:
                _change(module, nn.Conv2d, Conv2d)
    return Acceleration(model, tuple(layers))


def restore(model: nn.Module) -> nn.Module:
    """Give the layers that `accelerate` took back to torch, in place; the net computes bit for bit what it did before.

    Returns:
        The net.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for module in model.modules():
        _change(module, Conv2d, nn.Conv2d)
    return model


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _is_depthwise(module: Any) -> bool:
    """Whether it is a convolution with a group for each of several input channels; the lazy do not know theirs yet."""
    names = ("in_channels", "out_channels", "groups")
    inputs, outputs, groups = (getattr(module, name, None) for name in names)
    if not (isinstance(inputs, int) and isinstance(outputs, int) and isinstance(groups, int)):
        return False
    return groups > 1 and inputs in (groups, 0) and hasattr(module, "kernel_size") and hasattr(module, "stride")


def _why_not(module: Any) -> str | None:
    """Say in one sentence why torch keeps a depthwise layer; None if the operator takes it."""
    kind = parametrize.type_before_parametrizations(module)
    if isinstance(module, DepthwiseConv2d):
        return "it is the operator's already"
    if kind not in (nn.Conv2d, nn.LazyConv2d, Conv2d):
        where = f"{kind.__module__}.{kind.__qualname__}"
        what = "a subclass that may compute something else" if isinstance(module, nn.Conv2d) else "not nn.Conv2d"
        return f"{where} is {what}"
    if "_conv_forward" in vars(module):
        return "its computation was replaced"
    if module.out_channels != module.groups:
        return f"it has {module.out_channels // module.groups} filters a channel"
    if module.padding_mode != "zeros":
        return f"it pads by padding_mode={module.padding_mode!r}"
    if not isinstance(module, nn.LazyConv2d) and module.weight.dtype not in DTYPES:
        return f"its weight is {module.weight.dtype}"
    return None


def _backend(module: Any) -> str:
    """Who computes a layer that was taken, as far as it is known."""
    if isinstance(module, nn.LazyConv2d):
        return "known once it has seen a batch"
    device = module.weight.device.type
    if device != "cpu":
        return dispatch.AUTO.get(device, "torch")
    known = choices(module)
    return " or ".join({True: "cpu", False: "torch"}[won] for won in sorted(known)) or before_timing(module)


def _change(module: Any, old: type[nn.Conv2d], new: type[nn.Conv2d]) -> None:
    """Make a module whose class is `old`, parametrized, lazy or neither, one whose class is `new`."""
    if type(module) is nn.LazyConv2d:
        module.cls_to_become = new
    elif parametrize.type_before_parametrizations(module) is old:
        kind = type(module)
        # a parametrized module has a class of its own, which its copies share
        module.__class__ = new if kind is old else type(kind.__name__, (new,), dict(vars(kind)))
