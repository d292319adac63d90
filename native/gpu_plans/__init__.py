"""Which kernels compute a depthwise convolution, with which constants, on which grid: for the GPU and the emulator.

A plan is a list of launches. The layout of shared memory is decided here, once, and reaches the kernels as compiler
constants, so the ``.cu`` files hold no formula twice.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from math import ceil

import torch

from native.geometry import Pair, Shape
from native.gpu_plans import direct, toeplitz
from native.gpu_plans.problem import ELEMENTS, Launch, Plan, Problem, Target

__all__ = ["ANY_GPU", "PLANS", "Launch", "Plan", "Problem", "Target", "forward", "grad_input", "grad_weight",
           "in_layout", "plan", "problem", "torch_allows_tf32", "why_no_plan", "with_small"]  # fmt: skip

GRID_LIMIT = 65535  # blocks in y and in z
MAX_KERNEL = 127  # rows or columns; beyond, torch
IMAGES_A_CHUNK = 16  # of the weight gradient's partial sums, at most: fixed, so results depend on no GPU and no split
ANY_GPU = Target()


def problem(
    shape: Shape,
    dtype: torch.dtype,
    kernel: Shape,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> Problem:
    """The problem of an x of `shape` (N, C, H, W); in fp32, with tf32 where torch allows it now."""
    tf32 = dtype == torch.float32 and torch_allows_tf32()
    # torch calls an op with lists
    key = tuple(shape), dtype, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    return _problem(*key, tf32, activation)


@functools.lru_cache(maxsize=4096)  # every call asks, twice
def _problem(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    tf32: bool,
    activation: str | None,
) -> Problem:
    k, s, p, d = ((pair[0], pair[1]) for pair in (kernel, stride, padding, dilation))
    n, c, h, w = shape
    return Problem(dtype, n, c, h, w, k, s, p, d, tf32, activation=activation)


@functools.lru_cache(maxsize=4096)
def in_layout(function: str, p: Problem, last: bool, target: Target = ANY_GPU) -> Problem:
    """The problem in channels_last if `last` and a kernel takes it there, else in planes.

    All have one, for channels in eights or, in fp32 and tf32, in fours, where shared memory holds a pixel's channels.
    """
    p, wanted = replace(p, last=False), replace(p, last=True)
    if not last or p.channels % wanted.block_channels or why_no_plan(p, target) or not _fits(function, wanted, target):
        return p
    return wanted if max(plan(function, wanted, False, target).launches[0].grid[1:]) <= GRID_LIMIT else p


def torch_allows_tf32() -> bool:
    """Whether fp32 products may be rounded to tf32: torch allows it for convolutions and for matrix products.

    Convolutions alone are no leave: there torch allows it unasked, and its own depthwise convolution never uses it. The
    usual way to ask is ``torch.set_float32_matmul_precision("high")``.
    """
    backends = torch.backends
    convolutions, products = backends.cudnn.conv, backends.cuda.matmul  # type: ignore[attr-defined] # made at import
    return bool(convolutions.fp32_precision == products.fp32_precision == "tf32")


@functools.lru_cache(maxsize=4096)  # every call asks, and the tiles that fit are searched
def why_no_plan(p: Problem, target: Target = ANY_GPU) -> str | None:
    """One sentence that names what no kernel here covers; None if a plan exists, if need be by way of planes."""
    p = replace(p, last=False, small=None)
    if p.dtype not in ELEMENTS:
        return f"The CUDA kernels take float16, bfloat16 or float32, not {str(p.dtype).removeprefix('torch.')}."
    if max(p.kernel) > MAX_KERNEL:
        return f"The CUDA kernels take filters up to {MAX_KERNEL}x{MAX_KERNEL}, not {p.kernel[0]}x{p.kernel[1]}."
    if max(p.stride) > 8 or max(p.dilation) > 16:
        return "The CUDA kernels take strides up to 8 and dilations up to 16."
    if max(p.channels * p.height * p.width, p.channels * p.output[0] * p.output[1]) >= 2**31:
        return "The CUDA kernels take images of fewer than 2^31 elements."
    if not all(_fits(function, p, target) for function in PLANS):
        filters = f"filters of {p.kernel[0]}x{p.kernel[1]} at dilation {max(p.dilation)}"
        return f"The CUDA kernels hold a filter's reach in shared memory; {filters} need more than this GPU has."
    if p.batch > GRID_LIMIT:
        return f"The CUDA kernels take up to {GRID_LIMIT} images at a time, not {p.batch}."
    if _blocks(p, target) > GRID_LIMIT:
        return f"The CUDA kernels cut a map into up to {GRID_LIMIT} tiles; {p.height}x{p.width} needs more."
    return None


def _fits(function: str, p: Problem, target: Target) -> bool:
    """Whether shared memory suffices for a kernel of the function: of the tensor cores or, in planes, any other."""
    fast = target.tensor_cores(p)
    if function == "grad_weight":
        on_cores = fast and _weight_on_cores(p, target)
        return bool(on_cores or (not (fast and p.last) and direct.weight_tile(p, target)))
    back = function == "grad_input"
    here, size, zeros = (_transposed(p), (p.height, p.width), p.stride) if back else (p, p.output, (1, 1))
    on_cores = fast and toeplitz.launch(here, False, ("x", "w", "y"), False, target)
    return bool(on_cores or (not (fast and p.last) and direct.covers(here, size, zeros, target)))


def _blocks(p: Problem, target: Target) -> int:
    """The most blocks in y or z that a function launches."""
    plans = forward(p, False, target), grad_input(p, target), grad_weight(p, target)
    return max(blocks for plan in plans for launch in plan.launches for blocks in launch.grid[1:])


@functools.lru_cache(maxsize=4096)
def with_small(p: Problem, small: Pair, last: bool, target: Target = ANY_GPU) -> Problem | None:
    """The forward problem of a pair, whose two filters a kernel applies to one staging of x; None if none does.

    In channels_last if `last`, never by way of planes: two calls may be faster there.
    """
    p = replace(p, last=last, small=small)
    whole = p.channels % p.block_channels == 0
    inside = all(k <= most and (most - k) % 2 == 0 for k, most in zip(small, p.kernel, strict=True))
    if not (whole and inside and target.tensor_cores(p)) or why_no_plan(p, target):
        return None
    launch = toeplitz.launch(p, False, ("x", "w", "y"), False, target)
    return p if launch and max(launch.grid[1:]) <= GRID_LIMIT else None


def forward(p: Problem, bias: bool, target: Target = ANY_GPU) -> Plan:
    """Tensors: x, w, bias (if any), y; of a pair also small_w and small_y."""
    names = ("x", "w", "y")
    fast = toeplitz.launch(p, False, names, bias, target) if target.tensor_cores(p) else None
    return Plan((fast or direct.launch(p, p.output, (1, 1), False, names, bias, target),))


def grad_input(p: Problem, target: Target = ANY_GPU) -> Plan:
    """Tensors: dy, w, dx."""
    t, names = _transposed(p), ("dy", "w", "dx")
    fast = toeplitz.launch(t, True, names, False, target) if target.tensor_cores(p) else None
    return Plan((fast or direct.launch(t, (p.height, p.width), p.stride, True, names, False, target),))


def grad_weight(p: Problem, target: Target = ANY_GPU) -> Plan:
    """Tensors: x, dy, partial (workspace), dw."""
    filters = p.channels * p.kernel[0] * p.kernel[1]
    chunk = _images_a_chunk(p)
    chunks = ceil(p.batch / chunk)
    fast = _weight_on_cores(p, target) if target.tensor_cores(p) else None
    last = Launch("sum_partials.cu", (("THREADS", 256),), p.element, (ceil(filters / 256), 1, 1), 256, 0,
                  ("partial", "dw", ("i64", filters), chunks))  # fmt: skip
    return Plan((fast or direct.weight_launch(p, chunk, target), last), chunks * filters)


def _images_a_chunk(p: Problem) -> int:
    return toeplitz.last_weight_chunk(p, IMAGES_A_CHUNK) if p.last else IMAGES_A_CHUNK


def _weight_on_cores(p: Problem, target: Target) -> Launch | None:
    """The tensor cores' first phase of the weight gradient; None if no tile fits shared memory."""
    launch = toeplitz.last_weight_launch if p.last else toeplitz.weight_launch
    return launch(p, _images_a_chunk(p), target)


PLANS: dict[str, Callable[..., Plan]] = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}


def plan(function: str, p: Problem, bias: bool, target: Target = ANY_GPU) -> Plan:
    """The plan of a function of PLANS, or of forward_pair; a forward alone has a bias."""
    return forward(p, bias, target) if function in ("forward", "forward_pair") else PLANS[function](p, target)


def _transposed(p: Problem) -> Problem:
    """The forward problem over dy that gives dx: flipped filter, padding d·(K − 1) − p, dy's pixels a stride apart."""
    rows, columns = p.output
    top, left = (d * (k - 1) - q for d, k, q in zip(p.dilation, p.kernel, p.padding, strict=True))
    return replace(p, height=rows, width=columns, stride=(1, 1), padding=(top, left))
