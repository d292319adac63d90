"""The CUDA kernels on the CPU: the same ``.cu`` files behind a shim that emulates threads, barriers, tensor cores.

Every access is checked (bounds, alignment, bytes nobody wrote, races) and counted. It proves the kernels where there is
no GPU; it is no way to train.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from native import cache, gpu_plans, layout
from native.geometry import Geometry, Pair, Shape, same_padding

SHIM = Path(__file__).parent
KERNELS = SHIM.parent / "kernels"
FAULTS = ("out of bounds", "unwritten", "race", "misaligned", "diverged", "read-only", "never written")


@dataclass(frozen=True)
class Report:
    """What a launch did: bytes and 32-byte sectors of global memory, passes over shared memory, multiply-adds."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_sectors: int = 0
    written_sectors: int = 0
    shared_wavefronts: int = 0
    shared_conflicts: int = 0
    mma: int = 0
    fma: int = 0
    lines: tuple[tuple[str, int, int, int], ...] = ()  # file, line, wavefronts, conflicts of shared memory
    faults: tuple[tuple[str, int], ...] = ()
    first_fault: str = ""

    def __add__(self, other: "Report") -> "Report":
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Report(
            **counts,
            lines=self.lines + other.lines,
            faults=self.faults + other.faults,
            first_fault=self.first_fault or other.first_fault,
        )


COUNTS = tuple(field.name for field in fields(Report))[:8]


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64), ("writable", ctypes.c_int32))


class _Counters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        ("at_line", ctypes.c_int64 * 2 * 512),
        ("faults", ctypes.c_int64 * len(FAULTS)),
        ("first_fault", ctypes.c_char * 240),
    )


def compiler() -> str | None:
    """The host's C++ compiler, or None."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def why_not_here() -> str | None:
    """One sentence on why nothing can be emulated on this machine, or None."""
    if sys.platform != "linux":
        return f"The emulator switches stacks as Linux does, and this is {sys.platform}: name another backend."
    if compiler() is None:
        return "The emulator compiles the kernels with the host's C++ compiler: install g++ or clang++."
    return None


def _build(source: str, entry: str, element: str, constants: tuple[tuple[str, int], ...]) -> Path:
    """Compile a kernel's text behind the shim to a shared library; kept by the digest of all that goes in."""
    shared = (SHIM / "machine.hpp", SHIM / "ptx.cuh", SHIM / "launch.cpp", *sorted(KERNELS.glob("*.cuh")))
    shim = "".join(path.read_text(encoding="utf-8") for path in shared)
    defines = [f"-D{element}", f"-DENTRY={entry}", *(f"-D{name}={value}" for name, value in constants)]
    digest = hashlib.sha256("\0".join((source, shim, *defines)).encode()).hexdigest()[:24]
    target = cache.folder("kernels") / f"emulated-{entry}-{digest}.so"
    if target.exists():
        return target
    if why := why_not_here():
        raise RuntimeError(why)
    text = f'{source}\n#include "launch.cpp"\n'
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-fno-gnu-unique", "-U_FORTIFY_SOURCE"]
    with cache.beside(target) as own:
        command = [str(compiler()), *flags, f"-I{SHIM}", f"-I{KERNELS}", *defines, "-x", "c++", "-", "-o", str(own)]
        done = subprocess.run(command, input=text, encoding="utf-8", capture_output=True)
        if done.returncode:
            raise RuntimeError(f"The emulator could not compile {entry}:\n{done.stderr[:4000]}")
        own.replace(target)
    return target


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _value(
    argument: str | int | tuple[str, int], tensors: dict[str, Tensor]
) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int32:
    if isinstance(argument, str):
        return ctypes.c_void_p(tensors[argument].data_ptr())
    return ctypes.c_int64(argument[1]) if isinstance(argument, tuple) else ctypes.c_int32(argument)


def launch(
    step: gpu_plans.Launch, tensors: dict[str, Tensor], writes: str | Sequence[str], source: str | None = None
) -> Report:
    """Run one launch on contiguous CPU tensors; `writes` names its outputs; `source` replaces the kernel's text."""
    written = [writes] if isinstance(writes, str) else writes
    text = (KERNELS / step.source).read_text(encoding="utf-8") if source is None else source
    emulate = _library(_build(text, step.entry, step.element, step.constants)).emulate
    values = [_value(argument, tensors) for argument in step.arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    used = sorted({argument for argument in step.arguments if isinstance(argument, str)})
    buffers = (_Buffer * len(used))(*(_Buffer(tensors[n].data_ptr(), tensors[n].nbytes, n in written) for n in used))
    counters = _Counters()
    emulate(
        pointers, buffers, len(used), (ctypes.c_int * 3)(*step.grid), step.threads, step.shared, ctypes.byref(counters)
    )
    counts = {name: getattr(counters, name) for name in COUNTS}
    faults = tuple((kind, count) for kind, count in zip(FAULTS, counters.faults, strict=True) if count)
    lines = tuple((step.source, n, *two) for n, two in enumerate(counters.at_line) if two[0])
    return Report(**counts, lines=lines, faults=faults, first_fault=counters.first_fault.decode())


def run(plan: gpu_plans.Plan, tensors: dict[str, Tensor]) -> Report:
    """Run a plan's launches in order; the last tensors a launch names are those it writes."""
    if plan.workspace:
        tensors = {**tensors, "partial": torch.full((plan.workspace,), torch.nan, dtype=torch.float32, device="cpu")}
    report = Report()
    for step in plan.launches:
        names = [argument for argument in step.arguments if isinstance(argument, str)]
        report += launch(step, tensors, names[-step.outputs :])
    return report


def _covered(shape: Shape, dtype: torch.dtype, kernel: Shape, *geometry: *Geometry) -> gpu_plans.Problem:
    problem = gpu_plans.problem(shape, dtype, kernel, *geometry)
    if why := gpu_plans.why_no_plan(problem):
        raise ValueError(why)
    return problem


def _empty(like: Tensor, shape: Shape, last: bool) -> Tensor:
    return like.new_full(tuple(shape), torch.nan).contiguous(memory_format=layout.memory_format(last))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> tuple[Tensor, Report]:
    """x (N, C, H, W), weight (C, 1, Kh, Kw) → y (N, C, H', W') and what computing it did."""
    problem = _covered(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation)
    problem = gpu_plans.in_layout("forward", replace(problem, activation=activation), layout.is_last(x))
    y = _empty(x, (*x.shape[:2], *problem.output), problem.last)
    if not y.numel():
        return y, Report()
    tensors = {"x": layout.aligned(x, problem.last), "w": layout.aligned(weight), "y": y}
    if bias is not None:
        tensors["bias"] = bias.contiguous()
    return y, run(gpu_plans.forward(problem, bias is not None), tensors)


def forward_pair(x: Tensor, weight: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Report] | None:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), smaller filters → both outputs at stride 1 and what computing them did.

    None where no kernel computes both at a time.
    """
    kernel, one = weight.shape[2:], (1, 1)
    problem = gpu_plans.problem(x.shape, x.dtype, kernel, one, same_padding(kernel, one), one)
    pair = gpu_plans.with_small(problem, (small.shape[2], small.shape[3]), layout.is_last(x))
    if pair is None:
        return None
    y, small_y = (_empty(x, (*x.shape[:2], *pair.output), pair.last) for _ in range(2))
    tensors = {"x": layout.aligned(x, pair.last), "w": layout.aligned(weight), "small_w": layout.aligned(small)}
    return y, small_y, run(gpu_plans.forward(pair, False), tensors | {"y": y, "small_y": small_y})


def grad_input(grad: Tensor, weight: Tensor, input_shape: Shape, *geometry: *Geometry) -> tuple[Tensor, Report]:
    """grad (N, C, H', W') → dx of input_shape (N, C, H, W) and what computing it did."""
    problem = _covered(input_shape, grad.dtype, weight.shape[2:], *geometry)
    problem = gpu_plans.in_layout("grad_input", problem, layout.is_last(grad))
    dx = _empty(grad, input_shape, problem.last)
    if not dx.numel():
        return dx, Report()
    tensors = {"dy": layout.aligned(grad, problem.last), "w": layout.aligned(weight), "dx": dx}
    return dx, run(gpu_plans.grad_input(problem), tensors)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, *geometry: *Geometry) -> tuple[Tensor, Report]:
    """grad (N, C, H', W'), x (N, C, H, W) → dw (C, 1, Kh, Kw) and what computing it did."""
    problem = _covered(x.shape, x.dtype, kernel_size, *geometry)
    problem = gpu_plans.in_layout("grad_weight", problem, layout.is_last(x))
    if not x.numel():
        return x.new_zeros(x.shape[1], 1, *kernel_size), Report()
    dw = x.new_full((x.shape[1], 1, *kernel_size), torch.nan)
    maps = {"x": layout.aligned(x, problem.last), "dy": layout.aligned(grad, problem.last)}
    return dw, run(gpu_plans.grad_weight(problem), maps | {"dw": dw})
