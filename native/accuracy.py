"""How far a backend is from float64, and how far it may be.

The bound is a ratio: a backend's error may be twice that of torch's own convolution at the same dtype (plus a unit in
the last place, where torch happens to be exact). torch has no depthwise convolution in tf32; its error there is that of
its fp32 convolution of operands rounded to tf32, against float64 on the operands as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from native import aten, dispatch
from native.geometry import Pair, same_padding

NUMBERS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class Case:
    """x (batch, channels, *size), filters `kernel`, the geometry, are x and dy channels_last, y's activation."""

    size: Pair
    kernel: Pair
    batch: int = 3
    channels: int = 2
    stride: Pair = (1, 1)
    padding: Pair | None = None
    dilation: Pair = (1, 1)
    bias: bool = True
    last: bool = False
    activation: str | None = None

    @property
    def pads(self) -> Pair:
        """The padding; by default that which keeps the size."""
        return self.padding or same_padding(self.kernel, self.dilation)


@dataclass(frozen=True)
class Result:
    """Relative errors (Euclidean norm) of one function on one case: a backend's and torch's."""

    function: str
    error: float
    torch_error: float
    unit: float

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return self.error <= 2 * self.torch_error + self.unit


def relative_error(result: Tensor, reference: Tensor) -> float:
    """The Euclidean norm of the distance over that of the float64 reference."""
    distance = torch.linalg.vector_norm(result.double() - reference)
    return float(distance / torch.linalg.vector_norm(reference).clamp_min(1e-30))


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Whether torch allows tf32, for convolutions and matrix products, in here."""
    flags = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined] # made at import
    before = [f.fp32_precision for f in flags]
    try:
        for f in flags:
            f.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for f, value in zip(flags, before, strict=True):
            f.fp32_precision = value


def round_to_tf32(t: Tensor) -> Tensor:
    """Finite fp32 numbers to the nearest with 10 bits of mantissa, ties away from zero."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def compare(backend: str, case: Case, number: str, device: str, seed: int = 0) -> Iterator[Result]:
    """Errors of forward, grad_input and grad_weight on random numbers of a kind of `NUMBERS`.

    Raises:
        RuntimeError: the backend cannot compute the case.
    """
    dtype = NUMBERS[number]
    generator = torch.Generator(device).manual_seed(seed)
    x, w, b = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)
        for shape in ((case.batch, case.channels, *case.size), (case.channels, 1, *case.kernel), (case.channels,))
    )
    bias, geometry = b if case.bias else None, (case.stride, case.pads, case.dilation)
    shape = F.conv2d(x, w, bias, *geometry, case.channels).shape
    grad = torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)
    if case.last:
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))

    def three(name: str, dtype: torch.dtype, rounded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        xd, wd, gd = (round_to_tf32(t) if rounded else t.to(dtype) for t in (x, w, grad))
        module = dispatch.resolve(name, xd, wd, *geometry)
        y = module.forward(xd, wd, None if bias is None else bias.to(dtype), *geometry, case.activation)
        return (
            y,
            module.grad_input(gd, wd, tuple(x.shape), *geometry),
            module.grad_weight(gd, xd, case.kernel, *geometry),
        )

    with tf32_allowed(number == "tf32"):
        ours = three(backend, dtype)
    results = zip(ours, three("torch", dtype, number == "tf32"), three("torch", torch.float64), strict=True)
    for name, (own, stock, exact) in zip(("forward", "grad_input", "grad_weight"), results, strict=True):
        yield Result(name, relative_error(own, exact), relative_error(stock, exact), UNIT[dtype])


def on_two_channels(function: str, result: Tensor, arguments: tuple[Any, ...], tf32: bool) -> Result | None:
    """Errors of a call's first and last channel, where float64 is affordable; None if float64's are not finite.

    Args:
        function: forward, grad_input or grad_weight.
        result: what a backend made of the call.
        arguments: the call's, as `native.aten` takes them.
        tf32: whether the backend may round fp32 to tf32.
    """
    first, second, third, *geometry = arguments
    pick = sorted({0, first.shape[1] - 1})
    first = first[:, pick]
    second = second[:, pick] if function == "grad_weight" else second[pick]
    bias = None
    if function == "forward":
        third = bias = None if third is None else third[pick]
    elif function == "grad_input":
        third = (third[0], len(pick), *third[2:])
    by_torch = getattr(aten, function)
    exact = by_torch(first.double(), second.double(), third if bias is None else bias.double(), *geometry)
    if not exact.isfinite().all():
        return None
    operands = (round_to_tf32(first), round_to_tf32(second)) if tf32 else (first, second)
    own = result[pick] if function == "grad_weight" else result[:, pick]
    stock = by_torch(*operands, third, *geometry)
    return Result(function, relative_error(own, exact), relative_error(stock, exact), UNIT[result.dtype])
