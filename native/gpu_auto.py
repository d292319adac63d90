"""What "auto" means on a GPU: our kernels, unless torch's are measured to be faster for the shape, or ours to be wrong.

The first call of a kind (GPU, dtype, function) checks our kernel against float64 on a small input; the first call of a
shape times both. Choices are kept on disk with the GPU's name and torch's version. While a CUDA graph is being captured
nothing is measured: a shape that was never seen goes to torch.
"""

import functools
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from native import aten, autotune, cache, gpu, gpu_plans
from native.accuracy import Case, compare
from native.geometry import Pair
from native.gpu_plans import Problem

why_not = gpu.why_not
SMALL = Case((12, 13), (5, 5))
RUNS = 3  # timed of each; the fastest counts
_chosen: dict[tuple[str, Problem, int], str] = {}


@functools.cache
def _is_right(device: int, number: str, function: str) -> bool:
    """Whether our kernel agrees with float64 on a small input, as closely as torch's does."""
    try:
        results = list(compare("nvrtc", SMALL, number, f"cuda:{device}"))
    except RuntimeError as error:
        warnings.warn(
            f"The CUDA kernels do not run here, torch computes instead: {error}", RuntimeWarning, stacklevel=2
        )
        return False
    wrong = [r for r in results if r.function == function and not r.holds]
    for r in wrong:
        warnings.warn(
            f"The CUDA kernel for {function} in {number} is wrong on {torch.cuda.get_device_name(device)} "
            f"(error {r.error:.1e}, torch's {r.torch_error:.1e}); torch computes it instead.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not wrong


def _milliseconds(call: Callable[[], Tensor]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _times(call: Callable[[ModuleType], Tensor]) -> dict[str, float]:
    """Least seconds of this call by our kernel, if it can be compiled and loaded, and by torch's."""
    ways = _modules()
    try:
        call(gpu)  # compile
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"torch computes what a CUDA kernel cannot: {error}", RuntimeWarning, stacklevel=2)
        return {}
    call(aten)  # let cuDNN choose
    return {name: min(_milliseconds(functools.partial(call, m)) for _ in range(RUNS)) / 1e3 for name, m in ways.items()}


def _modules() -> dict[str, ModuleType]:
    """Who may compute, by the names of the choice on disk; of two equally fast the first."""
    return {"nvrtc": gpu, "torch": aten}


def _decide(function: str, problem: Problem, device: int, call: Callable[[ModuleType], Tensor]) -> str | None:
    """The way that is right and fast for this call, or was for an earlier process; None where nothing can be timed."""
    shape_class, ways = f"{function} {problem}", _modules()
    folder = cache.folder("gpu", cache.slug(f"{torch.cuda.get_device_name(device)} torch {torch.__version__}"))
    kept = autotune.recall(folder, shape_class, ways)
    if kept is not None:
        return kept
    if torch.cuda.is_current_stream_capturing():
        return None
    times = _times(call) if _is_right(device, problem.number, function) else {}
    choice = min(times, key=times.__getitem__, default="torch")
    return autotune.remember(folder, shape_class, choice, times, ways) or choice


def _choose(function: str, problem: Problem, device: torch.device, call: Callable[[ModuleType], Tensor]) -> Tensor:
    """The result of the module that is right and fast for this call."""
    number = torch.cuda.current_device() if device.index is None else device.index
    key = (function, problem, number)
    if key not in _chosen:
        with torch.cuda.device(number):
            choice = _decide(function, problem, number, call)
        if choice is None:
            return call(aten)
        _chosen[key] = choice
    return call(_modules()[_chosen[key]])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W')."""
    problem = gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation)
    args = (x, weight, bias, stride, padding, dilation)
    return _choose("forward", problem, x.device, lambda m: m.forward(*args))


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    problem = gpu_plans.problem(input_shape, grad.dtype, weight.shape[2:], stride, padding, dilation)
    args = (grad, weight, input_shape, stride, padding, dilation)
    return _choose("grad_input", problem, grad.device, lambda m: m.grad_input(*args))


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    problem = gpu_plans.problem(x.shape, x.dtype, kernel_size, stride, padding, dilation)
    args = (grad, x, kernel_size, stride, padding, dilation)
    return _choose("grad_weight", problem, grad.device, lambda m: m.grad_weight(*args))
