"""``python -m native check``: every usable backend against float64, on this machine.

The bound is a ratio: a backend's error may be twice that of torch's own convolution at the same dtype (plus a unit in
the last place, where torch happens to be exact). torch has no depthwise convolution in tf32; its error there is that of
its fp32 convolution of operands rounded to tf32, against float64 on the operands as they are.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from native import dispatch
from native.geometry import Pair, same_padding

NUMBERS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
ON_TENSOR_CORES = ("nvrtc", "measured", "emulated")  # backends that know tf32
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


@dataclass(frozen=True)
class Case:
    """x (batch, channels, *size), filters `kernel`, and the geometry."""

    size: Pair
    kernel: Pair
    batch: int = 3
    channels: int = 2
    stride: Pair = (1, 1)
    padding: Pair | None = None
    dilation: Pair = (1, 1)
    bias: bool = True

    @property
    def pads(self) -> Pair:
        """The padding; by default that which keeps the size."""
        return self.padding or same_padding(self.kernel, self.dilation)


CASES = (
    Case((16, 16), (31, 31), batch=16),
    Case((32, 32), (13, 13), batch=5),
    Case((64, 64), (31, 31), batch=8, channels=1),
    Case((56, 56), (31, 31), batch=2),
    Case((28, 28), (29, 29)),
    Case((14, 14), (27, 27), batch=33, channels=1),
    Case((7, 7), (13, 13), batch=17),
    Case((9, 13), (3, 3)),
    Case((20, 70), (4, 9), padding=(0, 7)),
    Case((14, 28), (51, 5)),
    Case((14, 28), (5, 51), bias=False),
    Case((1, 1), (1, 1), batch=1),
    Case((11, 70), (51, 51), batch=1),
    Case((12, 12), (3, 2), padding=(3, 2)),
    Case((33, 21), (7, 7), stride=(2, 2)),
    Case((15, 22), (5, 3), dilation=(2, 3)),
    Case((19, 18), (3, 5), stride=(2, 1), dilation=(1, 3), bias=False),
    Case((40, 33), (63, 63), batch=1, channels=1),
    Case((28, 60), (5, 5), batch=2, channels=17),  # enough channels for a CPU's vectors
    Case((98, 99), (33, 32), batch=1, channels=1, stride=(1, 2), padding=(1, 0), dilation=(3, 3), bias=False),
)


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


def _relative(result: Tensor, reference: Tensor) -> float:
    distance = torch.linalg.vector_norm(result.double() - reference)
    return float(distance / torch.linalg.vector_norm(reference).clamp_min(1e-30))


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Whether torch allows tf32, for convolutions and matrix products, in here."""
    flags = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
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
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


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

    def three(name: str, dtype: torch.dtype, rounded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        xd, wd, gd = (round_to_tf32(t) if rounded else t.to(dtype) for t in (x, w, grad))
        module = dispatch.resolve(name, xd, wd, *geometry)
        y = module.forward(xd, wd, None if bias is None else bias.to(dtype), *geometry)
        return (
            y,
            module.grad_input(gd, wd, tuple(x.shape), *geometry),
            module.grad_weight(gd, xd, case.kernel, *geometry),
        )

    with tf32_allowed(number == "tf32"):
        ours = three(backend, dtype)
    results = zip(ours, three("torch", dtype, number == "tf32"), three("torch", torch.float64), strict=True)
    for name, (own, stock, exact) in zip(("forward", "grad_input", "grad_weight"), results, strict=True):
        yield Result(name, _relative(own, exact), _relative(stock, exact), UNIT[dtype])


def _numbers(backend: str) -> list[str]:
    """The kinds of `NUMBERS` to check; the reference sums in the operands' own dtype, which is no match for torch's."""
    if backend == "reference":
        return ["float32"]
    return [name for name in NUMBERS if name != "tf32" or backend in ON_TENSOR_CORES]


def main(argv: list[str]) -> int:
    """Print a line per failure and a summary per backend and dtype; 0 if all hold."""
    parser = argparse.ArgumentParser(prog="python -m native check", description=__doc__)
    parser.add_argument(
        "--backend", action="append", choices=[*dispatch.MODULES], help="only these (default: every usable one)"
    )
    options = parser.parse_args(argv)
    failures = 0
    for backend in options.backend or [name for name in dispatch.backends() if name != "torch"]:
        if why := dispatch.why_not(backend):
            print(f"{backend}: {why}")
            failures += 1
            continue
        for number in _numbers(backend):
            failures += _check(backend, number, "cuda" if backend in ("nvrtc", "measured") else "cpu")
    return int(failures > 0)


def _check(backend: str, number: str, device: str) -> int:
    """Print what one backend does to all cases in one kind of number; how many results are wrong."""
    worst, wrong = 0.0, 0
    for case in CASES:
        for result in compare(backend, case, number, device):
            worst = max(worst, result.error)
            if not result.holds:
                wrong += 1
                print(f"  {result.function} {case}: error {result.error:.2e}, torch's {result.torch_error:.2e}")
    print(f"{backend} on {device}, {number}: {len(CASES)} cases, {wrong} wrong, largest error {worst:.1e}", flush=True)
    return wrong
