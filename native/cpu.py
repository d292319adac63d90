"""The plan that makes oneDNN fast for large depthwise kernels on CPUs.

oneDNN computes the forward well in channels_last, leaves its fast NCHW path when the padding passes 6, and has no fast
weight gradient for large kernels in any layout. What it computes well can stand in for what it does not:

- the input gradient is the forward with the filter turned by 180° and padding d (K − 1) − p;
- the weight gradient is a forward too: every (image, channel) is a group, x is its input, the output's gradient its
  filter, stride and dilation trade places, and the results are summed over the images;
- or `native.cpu_codegen` generates code for the machine at hand, for all three functions;
- for large maps any of them may be cheaper in the frequency domain (`native.fft`);
- taps that never touch the map (the outer ones of a kernel larger than 2 H − 1) are cropped first, exactly.

Results differ by round-off only, except that a NaN or an infinity may reach a few columns further than the kernel
(generated code multiplies it by zero there) or everywhere (frequency domain).

Which way is best depends on the shape and the machine: `native.autotune` measures, once, and keeps the choice.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from native import aten, autotune, fft
from native.activation import activated
from native.geometry import Pair, Shape

try:
    from native import cpu_codegen, cpu_ir
except ImportError:
    cpu_codegen = None  # type: ignore[assignment] # llvmlite has no wheel for every platform

Way = Callable[..., Tensor]

CHANNELS_LAST = torch.channels_last
FFT_TAPS, FFT_PIXELS = 121, 784  # below these the frequency domain has never won
PIECE = 256  # products that one sum of a weight gradient by groups holds, where a row is no longer


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """Say in one sentence why the plan cannot compute this call; None if it can."""
    if x is not None and x.device.type != "cpu":
        return f"the plan is for CPUs, and x is on {x.device}"
    return None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W')."""
    (ch, cw), way = _plan("forward", x, x.shape, weight.shape[2:], stride, padding, dilation, (x, weight, bias))
    padding = (padding[0] - ch * dilation[0], padding[1] - cw * dilation[1])
    return activated(way(x, _crop(weight, ch, cw), bias, stride, padding, dilation), activation, inplace=True)


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    tensors = (grad, weight, input_shape)
    (ch, cw), way = _plan("grad_input", grad, input_shape, weight.shape[2:], stride, padding, dilation, tensors)
    padding = (padding[0] - ch * dilation[0], padding[1] - cw * dilation[1])
    return way(grad, _crop(weight, ch, cw), input_shape, stride, padding, dilation)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    tensors = (grad, x, kernel_size)
    (ch, cw), way = _plan("grad_weight", x, x.shape, kernel_size, stride, padding, dilation, tensors)
    padding = (padding[0] - ch * dilation[0], padding[1] - cw * dilation[1])
    gw = way(grad, x, (kernel_size[0] - 2 * ch, kernel_size[1] - 2 * cw), stride, padding, dilation)
    return F.pad(gw, (cw, cw, ch, ch)) if ch or cw else gw


# --- cropping --------------------------------------------------------------------------------------------------------


def idle_taps(size: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """How many taps at either end of an axis never see a pixel, whatever the output pixel.

    The same number goes at both ends, so that the padding left stays symmetric and the output keeps its size.
    """
    last = (size + 2 * padding - dilation * (taps - 1) - 1) // stride  # the last output pixel
    front = max(0, -(-(padding - last * stride) // dilation))  # last · stride + u · dilation − padding < 0
    back = max(0, taps - 1 - (size - 1 + padding) // dilation)  # u · dilation − padding > size − 1
    return min(front, back, (taps - 1) // 2, padding // dilation)


def _crop(weight: Tensor, rows: int, columns: int) -> Tensor:
    """`weight` without `rows` taps above and below and `columns` taps left and right."""
    if not rows and not columns:
        return weight
    return weight[:, :, rows : weight.shape[2] - rows, columns : weight.shape[3] - columns]


# --- the ways --------------------------------------------------------------------------------------------------------


def _in_layout(way: Way, memory_format: torch.memory_format) -> Way:
    """`way` with its first argument, and its second if that is a map too, brought into a layout."""

    def call(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        second = second.contiguous(memory_format=memory_format) if second.shape[1] > 1 else second
        return way(first.contiguous(memory_format=memory_format), second, *rest)

    return call


def _in_float32(way: Way) -> Way:
    """`way` on 16-bit tensors computed in float32 and rounded once."""

    def call(*arguments: Any) -> Tensor:
        wide = (a.float() if isinstance(a, Tensor) else a for a in arguments)
        return way(*wide).to(arguments[0].dtype)

    return call


def _at_stride_one(
    grad: Tensor, size: Shape, kernel_size: Shape, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The output's gradient with zeros where only a convolution of stride 1 has pixels: its gradients are equal."""
    if tuple(stride) == (1, 1):
        return grad
    height, width = (size[a] + 2 * padding[a] - dilation[a] * (kernel_size[a] - 1) for a in (0, 1))
    full = grad.new_zeros(grad.shape[0], height, width, grad.shape[1]).permute(0, 3, 1, 2)
    full[:, :, :: stride[0], :: stride[1]] = grad
    return full


def _flipped(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The input gradient as a forward convolution of stride 1."""
    kernel_size = weight.shape[2:]
    grad = _at_stride_one(grad, input_shape[2:], kernel_size, stride, padding, dilation)
    padding = (dilation[0] * (kernel_size[0] - 1) - padding[0], dilation[1] * (kernel_size[1] - 1) - padding[1])
    return aten.forward(grad, weight.flip(2, 3), None, (1, 1), padding, dilation)


def _grouped(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The weight gradient as a forward convolution with a group for each (image, channel)."""
    n, c, h, w = x.shape
    maps = x.permute(2, 3, 0, 1).reshape(1, h, w, n * c).permute(0, 3, 1, 2)
    filters = grad.reshape(n * c, 1, *grad.shape[2:])
    products = aten.forward(maps, filters, None, dilation, padding, stride)[..., : kernel_size[0], : kernel_size[1]]
    return products.view(n, c, 1, *kernel_size).sum(0)


def _grouped_planes(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """`_grouped` on NCHW planes: better for small maps, whose rows fit a vector."""
    n, c, h, w = x.shape
    filters = grad.reshape(n * c, 1, *grad.shape[2:])
    products = aten.forward(x.reshape(1, n * c, h, w), filters, None, dilation, padding, stride)
    return products[..., : kernel_size[0], : kernel_size[1]].view(n, c, 1, *kernel_size).sum(0)


def _in_pieces(way: Way) -> Way:
    """A weight gradient by groups from a few rows of the output's gradient at a time, the pieces added up.

    oneDNN adds all products of a tap in one register, so that the error grows with the map: with AVX2 it passed twice
    that of torch's own gradient.
    """

    def call(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        rows = max(1, PIECE // grad.shape[3])
        if rows >= grad.shape[2]:
            return way(grad, x, kernel_size, stride, padding, dilation)
        x = F.pad(x, (0, 0, padding[0], padding[0]))
        reach = dilation[0] * (kernel_size[0] - 1) + 1
        pieces = []
        for first in range(0, grad.shape[2], rows):
            part = grad[:, :, first : first + rows]
            seen = x[:, :, first * stride[0] : (first + part.shape[2] - 1) * stride[0] + reach]
            pieces.append(way(part, seen, kernel_size, stride, (0, padding[1]), dilation))
        return torch.stack(pieces).sum(0)

    return call


# --- the plan --------------------------------------------------------------------------------------------------------

_STOCK: dict[str, Way] = {"forward": aten.forward, "grad_input": aten.grad_input, "grad_weight": aten.grad_weight}
_FFT: dict[str, Way] = {"forward": fft.forward, "grad_input": fft.grad_input, "grad_weight": fft.grad_weight}
_chosen: dict[tuple[Any, ...], tuple[Pair, Way]] = autotune.following({})


def _generated_grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    grad = _at_stride_one(grad, input_shape[2:], weight.shape[2:], stride, padding, dilation)
    return cpu_codegen.grad_input(grad, weight, input_shape, (1, 1), padding, dilation)


def _generated_grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    grad = _at_stride_one(grad, x.shape[2:], kernel_size, stride, padding, dilation)
    return cpu_codegen.grad_weight(grad, x, kernel_size, (1, 1), padding, dilation)


def _generated(function: str, channels: int, stride: Pair, dilation: Pair) -> Way | None:
    """The generated code, if it can compute the function for so many channels."""
    if cpu_codegen is None or not cpu_ir.multiplies_and_adds():
        return None
    if dilation != (1, 1) or channels < cpu_ir.lanes():
        return None
    if function == "forward":
        return cpu_codegen.forward if stride == (1, 1) else None
    return _generated_grad_input if function == "grad_input" else _generated_grad_weight


def _ways(
    function: str,
    dtype: torch.dtype,
    channels: int,
    size: Shape,
    kernel_size: Shape,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> dict[str, Way]:
    """Every way that can compute the function for this geometry, stock first."""
    way = _STOCK[function]
    stock_ways = {"channels_last": _in_layout(way, CHANNELS_LAST), "nchw": _in_layout(way, torch.contiguous_format)}
    ways: dict[str, Way] = {}
    generated = _generated(function, channels, stride, dilation)
    flippable = all(dilation[a] * (kernel_size[a] - 1) >= padding[a] for a in (0, 1))
    if generated is not None and (flippable or function != "grad_input") and dtype != torch.float64:
        ways["generated"] = generated
    if function == "grad_input" and flippable:
        ways["flipped channels_last"] = _in_layout(_flipped, CHANNELS_LAST)
        if stride == (1, 1):
            ways["flipped nchw"] = _in_layout(_flipped, torch.contiguous_format)
    if function == "grad_weight":
        ways["grouped"] = _in_pieces(_grouped)
        ways["grouped nchw"] = _in_pieces(_grouped_planes)
    large = kernel_size[0] * kernel_size[1] >= FFT_TAPS and size[0] * size[1] >= FFT_PIXELS
    if stride == (1, 1) and dilation == (1, 1) and large:
        ways["fft"] = _FFT[function]
    if dtype.itemsize == 2:
        # oneDNN takes minutes to generate 16-bit code for a filter as large as a map.
        ways = {
            f"{name} float32": way if name == "fft" else _in_float32(way)
            for name, way in {"channels_last": stock_ways["channels_last"], **ways}.items()
        }
        if function == "forward" and channels <= 16 and max(padding) > 6:  # minutes here too
            del stock_ways["channels_last"]
    return {**stock_ways, **ways}


def _rule(function: str, ways: dict[str, Way], taps: int) -> str:
    """The fixed choice where nothing may be measured."""
    best = {"forward": "channels_last", "grad_input": "flipped channels_last", "grad_weight": "grouped"}[function]
    for name in ("generated", "generated float32", best, f"{best} float32"):
        if name in ways and taps >= 25:
            return name
    return next(iter(ways))


def _part(function: str, call: tuple[Any, ...], images: int = 2, channels: int = 32) -> tuple[Any, ...]:
    """The same call for few images and channels, more than 16 of them as `_ways` was asked for many."""
    first, second, third = call
    if function == "forward":
        return first[:images, :channels], second[:channels], None if third is None else third[:channels]
    if function == "grad_input":
        return (
            first[:images, :channels],
            second[:channels],
            (min(images, third[0]), min(channels, third[1]), *third[2:]),
        )
    return first[:images, :channels], second[:images, :channels], third


def _plan(
    function: str,
    like: Tensor,
    shape: Shape,
    kernel_size: Shape,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    tensors: tuple[Any, ...],
) -> tuple[Pair, Way]:
    """Taps to crop at either end of each axis, and the way to take; `tensors` leads each way's arguments."""
    threads = torch.get_num_threads()
    key = (function, shape, kernel_size, stride, padding, dilation, like.dtype, like.stride(1) == 1, threads)
    known = _chosen.get(key)
    if known is not None:
        return known
    ch, cw = (idle_taps(shape[2 + a], kernel_size[a], stride[a], padding[a], dilation[a]) for a in (0, 1))
    kernel_size = (kernel_size[0] - 2 * ch, kernel_size[1] - 2 * cw)
    padding = (padding[0] - ch * dilation[0], padding[1] - cw * dilation[1])
    geometry = (stride, padding, dilation)
    first, second, third = tensors
    call = (first, _crop(second, ch, cw), third) if function != "grad_weight" else (first, second, kernel_size)
    ways = _ways(function, like.dtype, shape[1], shape[2:], kernel_size, *geometry)
    if function == "grad_weight":  # the other layout's errs up to eight times as much as what torch would do here
        del ways["nchw" if like.stride(1) == 1 else "channels_last"]
    name = autotune.choose(
        autotune.shape_class(function, like, shape, kernel_size, *geometry),
        ways,
        _rule(function, ways, kernel_size[0] * kernel_size[1]),
        (*call, *geometry),
        (*_part(function, call), *geometry),
    )
    _chosen[key] = ((ch, cw), ways[name])
    return _chosen[key]
