"""The operator that every model uses, registered with torch: one forward and two gradients, each an op of its own.

The gradients of the gradients are the same three ops again (the forward is linear in x and in weight), so derivatives
of any order and torch.compile need nothing more. Which code computes is `native.dispatch`'s business.

Shapes: x (N, C, H, W), weight (C, 1, Kh, Kw), output (N, C, H', W'), H' = (H + 2 ph − dh (Kh − 1) − 1) // sh + 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import register_flop_formula

from native import autotune
from native.activation import activated, gradient
from native.activation import check as check_activation
from native.arguments import check, check_grad, check_tensor, named_padding
from native.dispatch import resolve
from native.elsewhere import is_elsewhere
from native.geometry import Pair, Shape, output_size, pair, same_padding
from native.layer_choice import Geometry, kind_of_call, torch_wins

Gradients = tuple[Tensor | None, ...]  # of every input of an op

_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, str backend"
library = torch.library.Library("replk", "DEF")
library.define(f"depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, str? activation=None) -> Tensor")
library.define(f"depthwise_conv2d_grad_input(Tensor grad, Tensor weight, SymInt[4] input_shape, {_GEOMETRY}) -> Tensor")
library.define(f"depthwise_conv2d_grad_weight(Tensor grad, Tensor x, SymInt[2] kernel_size, {_GEOMETRY}) -> Tensor")
_forward = torch.ops.replk.depthwise_conv2d.default
_grad_input = torch.ops.replk.depthwise_conv2d_grad_input.default
_grad_weight = torch.ops.replk.depthwise_conv2d_grad_weight.default


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | str | None = None,
    dilation: int | Pair = 1,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel with its own filter (Sec. 3, Guideline 1).

    Args:
        x: (N, C, H, W) of float16, bfloat16, float32 or float64, in any memory format; N may be 0.
        weight: (C, 1, Kh, Kw), of x's dtype (under autocast any) and on x's device.
        bias: (C,) or None.
        stride, padding, dilation: an int, or one for the height and one for the width. Padding None keeps the size
            at stride 1 for odd kernels: ``K // 2 * dilation``. As in `nn.Conv2d` it may be "valid", which is 0, or at
            stride 1 "same", which for even kernels adds the odd row and column below and to the right.
        activation: "relu", "relu6" or None: of the result, which a GPU's kernel computes before it writes.
        backend: one of `native.backends()`, or "auto": the fastest for the device and the shape. Whatever it is,
            torch's own convolution stands in where a graph leaves this process (torch.export, torch.jit.trace, ONNX)
            and under torch.func's transforms and forward-mode derivatives.

    Precision: sums are in fp32, for float64 in float64. On a GPU of compute capability 8.0 or newer, float32 operands
    are rounded to tf32 for the tensor core if torch allows that for convolutions (it does) and for matrix products (it
    does after ``torch.set_float32_matmul_precision("high")``), at stride and dilation 1; torch's own depthwise
    convolution never does so.

    Infinities and NaNs: every output that sees one is infinite or NaN. Fast code multiplies zeros too, so NaN reaches
    further in the same image and channel: on a GPU at most 14 columns or 3 rows beyond the filter, in code generated
    for a CPU 19 columns, in the frequency domain ("auto" may choose it for large kernels and maps) everywhere; in the
    weight's gradient any tap of the same filter.

    Returns:
        (N, C, H', W') in x's memory format.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: the named backend cannot compute this; the message says why.
    """
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)) and has_torch_function((x, weight, bias)):
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "activation": activation,
            "backend": backend,
        }
        return handle_torch_function(depthwise_conv2d, (x, weight, bias), x, weight, bias, **options)  # torch.fx
    check_activation(activation)
    call = kind_of_call(x, weight, bias, stride, padding, dilation) if backend == "auto" else None
    if call is not None and call in _torchs:  # first: what follows takes as long as a small convolution
        return _by_torch(x, weight, bias, _torchs[call], activation)
    check_tensor("x", x)
    check_tensor("weight", weight, x, casts=True)
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    if padding is None:
        padding = same_padding(weight.shape[2:], dilation)
    if is_tracing():  # sizes are tensors there, and to ask one is a warning
        return activated(F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0]), activation)
    named = isinstance(padding, str)
    if isinstance(padding, str):
        x, padding = named_padding(padding, x, weight.shape[2:], stride, dilation)
    else:
        padding = pair("padding", padding)
    geometry = Geometry((weight.shape[2], weight.shape[3]), stride, padding, dilation)
    if backend == "auto" and torch_wins(geometry, x, weight, bias):
        check(x, weight, bias, stride, padding, dilation, casts=True)
        if call is not None and not named:
            _torchs[call] = geometry
        return _by_torch(x, weight, bias, geometry, activation)
    if is_elsewhere():
        check(x, weight, bias, stride, padding, dilation, casts=True)
        return activated(F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0]), activation)
    y: Tensor = _forward(x, weight, bias, stride, padding, dilation, backend, activation)
    return y


_torchs: dict[tuple[Any, ...], Geometry] = autotune.following({})
"""Calls on CPUs that are torch's, by their kind."""


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Geometry, activation: str | None) -> Tensor:
    """The convolution as an op of torch's, which gradients go through."""
    if x.stride(1) == 1 != weight.stride(1) and weight.requires_grad and torch.is_grad_enabled():
        weight = weight.view_as(weight)  # or its gradient would be in channels_last, as x is
    _, stride, padding, dilation = layer
    return activated(F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0]), activation, inplace=True)


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d(channels, channels, kernel_size, groups=channels)`` computed by `depthwise_conv2d`.

    Same parameters, state_dict and repr. `padding` None keeps the size at stride 1 for odd kernels; the attribute then
    holds the numbers. Where `padding_mode` is set to another than "zeros", torch computes. torch.jit.script refuses it:
    torch.export and torch.jit.trace do not. An `activation` set on the layer ("relu", "relu6"), as `deploy` does, is
    computed with it.
    """

    stride: Pair
    padding: Pair | str
    dilation: Pair
    activation: str | None = None

    def __init__(
        self,
        channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str | None = None,
        dilation: int | Pair = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        kernel_size, dilation = pair("kernel_size", kernel_size), pair("dilation", dilation)
        if not isinstance(padding, str):
            padding = same_padding(kernel_size, dilation) if padding is None else pair("padding", padding)
        super().__init__(
            channels,
            channels,
            kernel_size,
            pair("stride", stride),
            padding,
            dilation,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":  # set afterwards, as those do who want pictures that tile
            return activated(super()._conv_forward(input, weight, bias), self.activation)
        geometry: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return depthwise_conv2d(input, weight, bias, **geometry, activation=self.activation)

    def extra_repr(self) -> str:
        """That of `nn.Conv2d`, and the activation where there is one."""
        stock: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{stock}, activation={self.activation}" if self.activation else stock

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which asks every module first; it would fail in torch's own words."""
        raise NotImplementedError(
            "TorchScript does not compile our operator, which is Python: use torch.export or torch.compile"
        )


# --- what the ops compute --------------------------------------------------------------------------------------------


def format_of(x: Tensor) -> torch.memory_format:
    """channels_last if x's channels lie side by side, else contiguous."""
    return torch.channels_last if x.stride(1) == 1 and x.stride(3) >= x.shape[1] > 1 else torch.contiguous_format


def _run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    backend: str,
    activation: str | None = None,
) -> Tensor:
    check_activation(activation)
    check_tensor("x", x)
    check_tensor("weight", weight, x)
    check(x, weight, bias, stride, padding, dilation)
    if x.shape[0] == 0:
        return _fake_forward(x, weight, bias, stride, padding, dilation)
    module = resolve(backend, x, weight, stride, padding, dilation)
    y: Tensor = module.forward(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), activation)
    return y.contiguous(memory_format=format_of(x))


def _run_grad_input(
    grad: Tensor, weight: Tensor, input_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, backend: str
) -> Tensor:
    check_tensor("weight", weight)
    check_grad(grad, weight, input_shape, weight.shape[2:], stride, padding, dilation)
    if grad.shape[0] == 0:
        return _fake_grad_input(grad, weight, input_shape)
    x = grad.new_empty(1).expand(input_shape)  # for its shape and device
    module = resolve(backend, x, weight, stride, padding, dilation)
    gx: Tensor = module.grad_input(grad, weight, tuple(input_shape), tuple(stride), tuple(padding), tuple(dilation))
    return gx.contiguous(memory_format=format_of(grad))


def _run_grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, backend: str
) -> Tensor:
    check_tensor("x", x)
    check_grad(grad, x, x.shape, kernel_size, stride, padding, dilation)
    weight = x.new_zeros(1).expand(x.shape[1], 1, *kernel_size)  # for its shape and device
    if grad.shape[0] == 0:
        return weight.contiguous()
    module = resolve(backend, x, weight, stride, padding, dilation)
    gw: Tensor = module.grad_weight(grad, x, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    taps = kernel_size[0] * kernel_size[1]
    new = (taps, taps, kernel_size[1], 1)  # the strides of a new tensor, along its one channel too
    return gw if gw.stride() == new else gw.reshape(-1).view(gw.shape)


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, *_: object
) -> Tensor:
    check_tensor("x", x)
    check_tensor("weight", weight, x)
    check(x, weight, bias, stride, padding, dilation)
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=format_of(x))


def _fake_grad_input(grad: Tensor, weight: Tensor, input_shape: Shape, *_: object) -> Tensor:
    return torch.empty(tuple(input_shape), dtype=grad.dtype, device=grad.device, memory_format=format_of(grad))


def _fake_grad_weight(grad: Tensor, x: Tensor, kernel_size: Shape, *_: object) -> Tensor:
    return torch.empty((x.shape[1], 1, *kernel_size), dtype=grad.dtype, device=grad.device)


# --- derivatives -----------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the two tensors that an op is linear in, and its geometry."""
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.geometry = inputs[3:]


def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Likewise, and what the activation's gradient needs: its result."""
    x, weight, _, *ctx.geometry, ctx.activation = inputs
    ctx.save_for_backward(x, weight, *([output] if ctx.activation else []))


def _forward_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, weight, *result = ctx.saved_tensors
    if result:
        grad = gradient(grad, result[0], ctx.activation)
    gx, gw = gradients(grad, x, weight, ctx.geometry, *ctx.needs_input_grad[:2])
    gb = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return gx, gw, gb, None, None, None, None, None


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Any], wants_x: bool, wants_weight: bool
) -> Gradients:
    """Those by x and by weight, for the output's, that are wanted; `geometry` ends with the backend."""
    gx = _grad_input(grad, weight, x.shape, *geometry) if wants_x else None
    gw = _grad_weight(grad, x, weight.shape[2:], *geometry) if wants_weight else None
    if gw is not None and weight.stride(1) == 1:  # in channels_last, and DistributedDataParallel compares all strides
        gw = gw.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
    return gx, gw


def _grad_input_backward(ctx: Any, grad_gx: Tensor) -> Gradients:
    grad, weight = ctx.saved_tensors
    wants_grad, wants_weight = ctx.needs_input_grad[:2]
    ggrad = _forward(grad_gx, weight, None, *ctx.geometry) if wants_grad else None
    gw = _grad_weight(grad, grad_gx, weight.shape[2:], *ctx.geometry) if wants_weight else None
    return ggrad, gw, None, None, None, None, None


def _grad_weight_backward(ctx: Any, grad_gw: Tensor) -> Gradients:
    grad, x = ctx.saved_tensors
    wants_grad, wants_x = ctx.needs_input_grad[:2]
    ggrad = _forward(x, grad_gw, None, *ctx.geometry) if wants_grad else None
    gx = _grad_input(grad, grad_gw, x.shape, *ctx.geometry) if wants_x else None
    return ggrad, gx, None, None, None, None, None


# --- autocast and FLOPs ----------------------------------------------------------------------------------------------


def _autocast(op: Any, device: str, casts: bool) -> Callable[..., Any]:
    """The op; if it `casts`, with its float tensors (float64 aside, as torch does) in the device's autocast dtype.

    Gradients are not cast: like torch's they have the forward's dtype, also where `backward` is called under autocast.
    """
    key = torch._C.DispatchKey.AutocastCPU if device == "cpu" else torch._C.DispatchKey.AutocastCUDA

    def cast(value: Any) -> Any:
        lower = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(device)) if lower else value

    def call(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*(map(cast, args) if casts else args))

    return call


def register(
    op: Any, run: Callable[..., Any], fake: Callable[..., Any], keep: Callable[..., None], backward: Callable[..., Any],
    casts: bool,
) -> None:  # fmt: skip
    """Give an op of `library` what computes it, shapes, derivatives and whether autocast casts its arguments."""
    library.impl(op, run, "CompositeExplicitAutograd")
    library.impl(op, _autocast(op, "cpu", casts), "AutocastCPU")
    library.impl(op, _autocast(op, "cuda", casts), "AutocastCUDA")
    torch.library.register_fake(op.name(), fake, lib=library)
    torch.library.register_autograd(op.name(), backward, setup_context=keep, lib=library)


def multiply_adds(shape: Shape, taps: Shape) -> int:
    """2 N C H' W' Kh Kw, as torch counts a convolution (taps on the padding included)."""
    n, c, h, w = shape
    return 2 * n * c * h * w * taps[-2] * taps[-1]


register_flop_formula(torch.ops.replk.depthwise_conv2d)(
    lambda x, weight, *_, out_shape, **__: multiply_adds(out_shape, weight)
)
register_flop_formula(torch.ops.replk.depthwise_conv2d_grad_input)(
    lambda grad, weight, *_, **__: multiply_adds(grad, weight)
)
# torch's own formula for the weight gradient forgets the groups and counts C times as many.
register_flop_formula(torch.ops.replk.depthwise_conv2d_grad_weight)(
    lambda grad, x, kernel_size, *_, **__: multiply_adds(grad, kernel_size)
)

register(_forward, _run_forward, _fake_forward, _keep_forward, _forward_backward, casts=True)
register(_grad_input, _run_grad_input, _fake_grad_input, _keep, _grad_input_backward, casts=False)
register(_grad_weight, _run_grad_weight, _fake_grad_weight, _keep, _grad_weight_backward, casts=False)
