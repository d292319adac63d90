"""What "auto" means on a GPU: our kernels, unless torch's are measured to be faster for the shape, or ours to be wrong.

The first call of a kind (GPU, dtype, function) checks our kernel against float64 on a small input; the first call of a
shape times both. Choices are kept on disk with the GPU's name and torch's version. While a CUDA graph is being captured
nothing is measured: a shape that was never seen goes to torch.
"""

import json
import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from native import aten, gpu, gpu_plans
from native.accuracy import Case, compare
from native.geometry import Pair

why_not = gpu.why_not
SMALL = Case((12, 13), (5, 5))
RUNS = 3  # timed of each; the fastest counts


@cache
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
    return start.elapsed_time(end)


def _is_faster(call: Callable[[ModuleType], Tensor]) -> bool:
    """Whether our kernel beats torch's at this call; one that cannot be compiled or loaded does not."""
    try:
        call(gpu)  # compile
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"torch computes what a CUDA kernel cannot: {error}", RuntimeWarning, stacklevel=2)
        return False
    call(aten)  # let cuDNN choose
    ours, theirs = (min(_milliseconds(partial(call, m)) for _ in range(RUNS)) for m in (gpu, aten))
    return ours <= theirs


def _file(device: int) -> Path:
    name = torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return gpu.cache_folder() / f"choices-{name}-torch{torch.__version__}.json"


@cache
def _choices(device: int) -> dict[str, bool]:
    """Key of a call → whether our kernel is the faster; what earlier processes found."""
    try:
        return dict(json.loads(_file(device).read_text()))
    except (OSError, ValueError):
        return {}


def _keep(device: int) -> None:
    file = _file(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_suffix(f".{os.getpid()}")
    own.write_text(json.dumps(_choices(device), indent=0, sort_keys=True))
    own.replace(file)  # whole or not at all


def _choose(
    function: str, problem: gpu_plans.Problem, device: torch.device, call: Callable[[ModuleType], Tensor]
) -> Tensor:
    """The result of the module that is right and fast for this call."""
    number = torch.cuda.current_device() if device.index is None else device.index
    choices, key = _choices(number), f"{function} {problem}"
    if key not in choices:
        if torch.cuda.is_current_stream_capturing():
            return call(aten)
        with torch.cuda.device(number):
            choices[key] = _is_right(number, problem.number, function) and _is_faster(call)
        _keep(number)
    return call(gpu if choices[key] else aten)


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
