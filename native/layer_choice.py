"""Whether the operator or torch's own convolution computes a call on a CPU, or a layer of somebody else's net.

On a CPU both are timed at the first call of a kind, forward and, where gradients are wanted, backward, in the layout at
hand; `native.autotune` keeps the choice on disk. The operator must win by its margin, the Python of its derivatives
counted, so that a layer that torch computes well stays torch's; up to 3 × 3, and without gradients up to 7 × 7, that is
every one, and nothing is timed.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from native import autotune, dispatch
from native.elsewhere import is_elsewhere
from native.geometry import Pair, output_size, pair, same_padding

LARGE = 49  # taps; from 7 × 7 on the operator computes where nothing is timed
AUTOGRAD = 1e-4  # seconds: the Python of the op's derivatives, which autograd runs and the timing does not
PART = 2  # images on which a hopeless way is found

ONEDNN = torch.backends.mkldnn.is_available()
KINDS = (Tensor, nn.Parameter)
NOTHING = (False, False)

_chosen: dict[tuple[Any, ...], bool] = autotune.following({})


class Geometry(NamedTuple):
    """What of a layer a choice depends on."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


def operator_wins(layer: nn.Conv2d | Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator is to compute a depthwise layer with this weight and bias.

    Where it is not known to be right and fast, torch computes: for arguments that torch refuses too (in its own
    words), unbatched or empty x, tensor subclasses, graphs that leave the process, function transforms, modes that
    watch the ops, devices without a backend. Within torch.compile and on GPUs nothing is timed, and the taps decide.
    """
    if type(x) is not Tensor:  # torch.fx, or a subclass
        return not isinstance(x, Tensor) and _is_large(layer)
    if _is_torchs(layer, x, weight):  # first, for small layers feel the rest's microseconds
        return False
    if torch.compiler.is_compiling():
        return _is_large(layer) and x.dim() == 4 and weight.shape[1] == 1 and x.device.type in dispatch.AUTO
    device = "cpu" if x.is_cpu else x.device.type
    if device not in dispatch.AUTO or type(weight) not in KINDS or _is_watched():
        return False
    return _decided(layer, x, weight, bias, device)


def _decided(layer: nn.Conv2d | Geometry, x: Tensor, weight: Tensor, bias: Tensor | None, device: str) -> bool:
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    wanted = (x.requires_grad, weight.requires_grad) if torch.is_grad_enabled() else NOTHING
    last = x.dim() == 4 and x.stride(1) == 1
    key = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, weight.shape, x.shape, last, x.dtype,
           weight.dtype, device, weight.device, cast, wanted, torch.get_num_threads())  # fmt: skip
    try:
        known = _chosen.get(key)
    except TypeError:  # somebody set a list as the layer's stride
        return False
    if known is None:
        known = _chosen[key] = _fits(x, weight, cast) and _decide(layer, x, weight, bias, wanted, cast)
    return known


def kind_of_call(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Any, ...] | None:
    """What makes a call on a CPU like another, for a memory of those that are torch's; None where nothing is asked.

    `rest` is what else the call is given, bias first.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or type(weight) not in KINDS:
        return None
    if not (x.is_cpu and weight.is_cpu) or x.layout is not torch.strided or x.dim() != 4 or _is_watched():
        return None
    bias, *geometry = rest
    if bias is not None and type(bias) not in KINDS:
        return None
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    wanted = (x.requires_grad, weight.requires_grad) if torch.is_grad_enabled() else NOTHING
    its = None if bias is None else (bias.shape, bias.dtype, bias.device)
    key = (x.shape, x.stride(1) == 1, x.dtype, weight.shape, weight.dtype, its, *geometry, cast, wanted,
           torch.get_num_threads())  # fmt: skip
    try:
        hash(key)
    except TypeError:  # a stride that is a list
        return None
    return key


def torch_wins(layer: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether torch is to compute a call of the operator on a CPU: where `operator_wins` is sure enough to say no.

    Where it does not ask (within torch.compile, where FLOPs are counted, where graphs leave the process), such a call
    is not torch's by this.
    """
    if not x.is_cpu or type(x) is not Tensor or type(weight) not in KINDS:
        return False
    if torch.compiler.is_compiling() or _is_watched():
        return False
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return _fits(x, weight, cast) and (_is_torchs(layer, x, weight) or not _decided(layer, x, weight, bias, "cpu"))


def choices(layer: nn.Conv2d) -> set[bool]:
    """What was chosen in this process for layers of these channels and this geometry."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.weight.shape)
    return {won for key, won in _chosen.items() if key[:5] == geometry}


def before_timing(layer: nn.Conv2d) -> str:
    """Who computes a layer on a CPU, where nothing of it has been timed."""
    probe = layer.weight.detach().requires_grad_()
    with torch.enable_grad():
        if _is_torchs(layer, probe, probe):
            return "torch"
    with torch.no_grad():
        return f"cpu or torch, timed when {'it trains' if _is_torchs(layer, probe, probe) else 'called'}"


def _is_large(layer: nn.Conv2d | Geometry) -> bool:
    return layer.kernel_size[0] * layer.kernel_size[1] >= LARGE


def _is_torchs(layer: nn.Conv2d | Geometry, x: Tensor, weight: Tensor) -> bool:
    """Whether no measurement is needed: where oneDNN computes, torch won all of up to 3×3, and forward up to 7×7."""
    side = max(layer.kernel_size)
    if side > 7 or layer.dilation != (1, 1) or not (ONEDNN and x.is_cpu and x.dtype is torch.float32):
        return side == 1
    return side <= 3 or not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


def _is_watched() -> bool:
    """Whether the call is traced, transformed, or seen by a mode such as one that counts FLOPs."""
    return is_tracing() or is_elsewhere() or torch._C._len_torch_dispatch_stack() > 0


def _fits(x: Tensor, weight: Tensor, cast: torch.dtype | None) -> bool:
    """Whether the operator takes these arguments."""
    return (
        x.dim() == 4
        and x.numel() > 0
        and weight.shape[:2] == (x.shape[1], 1)
        and x.device == weight.device
        and (x.dtype == weight.dtype or (cast is not None and torch.float64 not in (x.dtype, weight.dtype)))
    )


def _decide(
    layer: nn.Conv2d | Geometry,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: tuple[bool, bool],
    cast: torch.dtype | None,
) -> bool:
    device, kernel = x.device.type, weight.shape[2:]
    if device != "cpu":
        return _is_large(layer) and dispatch.why_not(dispatch.AUTO[device]) is None
    stride, dilation = pair("stride", layer.stride), pair("dilation", layer.dilation)
    dtype = x.dtype if cast is None or x.dtype == torch.float64 else cast
    if dtype.itemsize == 2 and max(kernel) > 13:
        return True  # oneDNN may take minutes to generate torch's code
    named = {"same": same_padding(kernel, dilation), "valid": (0, 0)}
    padding = named[layer.padding] if isinstance(layer.padding, str) else pair("padding", layer.padding)
    wrong = min(*stride, *dilation) < 1 or min(padding) < 0
    if wrong or min(output_size(x.shape[2:], kernel, stride, padding, dilation)) < 1:
        return False  # whoever is called refuses it
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        images, filters = x.detach().to(dtype), weight.detach().to(dtype)
        biases = None if bias is None else bias.detach().to(dtype)
        call, part = ((some, filters, biases, stride, padding, dilation) for some in (images, images[:PART]))
        ways = {name: partial(way, wanted) for name, way in WAYS.items()}
        function = "layer" + "".join(f" d{name}" for name, wants in zip("xw", wanted, strict=True) if wants)
        name = autotune.shape_class(function, images, x.shape, kernel, stride, padding, dilation)
        rule = "operator" if _is_large(layer) else "torch"
        extra = {"operator": AUTOGRAD if any(wanted) else 0.0}
        return autotune.choose(name, ways, rule, call, part, extra) == "operator"


def _by_torch(
    wanted: tuple[bool, bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Forward and the gradients that are wanted; the output stands in for its gradient."""
    channels = weight.shape[0]
    y = F.conv2d(x, weight, bias, stride, padding, dilation, channels)
    if any(wanted):
        sizes, mask = None if bias is None else [channels], [*wanted, bias is not None]
        torch.ops.aten.convolution_backward(
            y, x, weight, sizes, stride, padding, dilation, False, (0, 0), channels, mask
        )
    return y


def _by_operator(
    wanted: tuple[bool, bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The same three by the operator."""
    ops, geometry = torch.ops.replk, (stride, padding, dilation, "auto")
    y: Tensor = ops.depthwise_conv2d(x, weight, bias, *geometry)
    if wanted[0]:
        ops.depthwise_conv2d_grad_input(y, weight, x.shape, *geometry)
    if wanted[1]:
        ops.depthwise_conv2d_grad_weight(y, x, weight.shape[2:], *geometry)
    if any(wanted) and bias is not None:
        y.sum((0, 2, 3))
    return y


WAYS = {"torch": _by_torch, "operator": _by_operator}
