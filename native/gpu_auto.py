"""What "auto" means on a GPU: our kernels, unless torch's are measured to be faster for the shape, or ours to be wrong.

The first call of a shape runs both, compares two channels with float64, and times both. What was found is kept on disk,
by GPU, driver, versions and our kernels' sources; nearby shapes share it, and the first process or thread that finds
decides for all. Only findings are kept: after an error that may pass, as when memory is short, torch computes the call
and the next one asks again. While a CUDA graph is being captured nothing is measured or loaded: what this process has
not computed before goes to torch.
"""

import functools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from native import aten, autotune, cache, gpu
from native.accuracy import on_two_channels
from native.geometry import Pair
from native.gpu_plans import Problem

why_not = gpu.why_not
ROUNDS = 5  # interleaved, so that a busy moment hits both
BATCH = 1.0  # milliseconds of launches timed as one, so that the GPU is timed and not Python
MOST = 50  # launches of a batch
_chosen: dict[tuple[str, Problem, bool, bool, int], str] = {}


class _Call(NamedTuple):
    """A call of one of the three functions, as every module takes it."""

    function: str
    problem: Problem
    arguments: tuple[Any, ...]

    @property
    def bias(self) -> bool:
        """Whether a forward has one."""
        return self.function == "forward" and self.arguments[2] is not None

    @property
    def map(self) -> Tensor:
        """The x or dy that comes first."""
        map: Tensor = self.arguments[0]
        return map

    @property
    def shape_class(self) -> str:
        """What shares a choice."""
        p = self.problem
        shape = (p.batch, p.channels, p.height, p.width)
        named = autotune.shape_class(self.function, self.map, shape, p.kernel, p.stride, p.padding, p.dilation)
        return f"{named}{' tf32' * p.tf32}{' bias' * self.bias}{f' {p.activation}' if p.activation else ''}"

    def by(self, module: ModuleType) -> Tensor:
        """The result."""
        result: Tensor = getattr(module, self.function)(*self.arguments)
        return result


def _modules() -> dict[str, ModuleType]:
    """Who may compute, by the names of the choice on disk; the first unless the second is clearly faster."""
    return {"torch": aten, "nvrtc": gpu}


@functools.cache
def _folder(device: int) -> Path | None:
    """Where this GPU's findings are kept; None where there is no home directory."""
    versions = f"torch {torch.__version__} cudnn {torch.backends.cudnn.version()} driver {gpu.driver_version()}"
    named = f"{torch.cuda.get_device_name(device)} {versions} kernels {gpu.kernels_digest()}"
    return cache.folder_if_any("gpu", cache.slug(named))


def _milliseconds(call: Callable[[], Tensor], launches: int = 1) -> float:
    """Of one of several calls in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(launches):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / launches


def _times(call: _Call) -> dict[str, float]:
    """Seconds of this call by either; what is hopeless is timed once."""
    calls = {name: functools.partial(call.by, module) for name, module in _modules().items()}
    for warm_up in calls.values():  # cuDNN chooses
        warm_up()
    times = {name: [_milliseconds(timed)] for name, timed in calls.items()}
    quick = {name: ms[0] for name, ms in times.items() if ms[0] <= autotune.HOPELESS * min(min(times.values()))}
    for _ in range(ROUNDS if len(quick) > 1 else 0):
        for name, ms in quick.items():
            launches = min(MOST, math.ceil(BATCH / max(ms, BATCH / MOST)))
            times[name].append(_milliseconds(calls[name], launches))
    return {name: statistics.median(ms[1:] or ms) / 1e3 for name, ms in times.items()}


def _is_right(call: _Call) -> bool | None:
    """Whether our result is as close to float64 as torch's; None where float64 is not finite, so that it cannot say.

    Raises:
        CompilationError: NVRTC refused our kernel.
    """
    result = on_two_channels(call.function, call.by(gpu), call.arguments, call.problem.tf32)
    if result is None or result.holds:
        return None if result is None else True
    warnings.warn(
        f"The CUDA kernel for {call.function} in {call.problem.number} is wrong on {torch.cuda.get_device_name()} "
        f"(error {result.error:.1e}, torch's {result.torch_error:.1e}); torch computes it instead.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _find(call: _Call) -> Mapping[str, float] | None:
    """Seconds of either, none where ours is wrong or does not compile; None where that cannot be said now."""
    try:
        right = _is_right(call)
        return None if right is None else _times(call) if right else {}
    except gpu.CompilationError as error:
        warnings.warn(f"torch computes what a CUDA kernel cannot: {error}", RuntimeWarning, stacklevel=2)
        return {}


def _decide(call: _Call, device: int) -> tuple[str, bool]:
    """Who computes this call, and whether later ones of this process too."""
    if torch.cuda.is_current_stream_capturing():
        return "torch", False
    folder, ways = _folder(device), _modules()
    kept = autotune.recall(folder, call.shape_class, ways) if folder else None
    try:
        if kept is not None:
            if kept == "nvrtc":
                gpu.prepare(call.function, call.problem, call.bias, device)
            return kept, True
        times = _find(call)
    except torch.OutOfMemoryError:
        return "torch", False
    except RuntimeError as error:
        warnings.warn(f"The CUDA kernels do not run now, torch computes: {error}", RuntimeWarning, stacklevel=2)
        return "torch", True  # of this process
    if times is None:
        return "torch", False
    choice = autotune.fastest(times) if times else "torch"
    return (folder and autotune.remember(folder, call.shape_class, choice, times, ways)) or choice, True


def _compute(call: _Call) -> Tensor:
    """The result of the module that is right and fast for this call."""
    device = call.map.device.index
    number = torch.cuda.current_device() if device is None else device
    key = (call.function, call.problem, call.bias, call.map.stride(1) == 1, number)
    choice = _chosen.get(key)
    if choice is None:
        with torch.cuda.device(number):
            choice, stays = _decide(call, number)
        if stays:
            choice = _chosen.setdefault(key, choice)
    return call.by(_modules()[choice])


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
    problem = gpu.problem_of("forward", x, x.shape, weight.shape[2:], stride, padding, dilation, activation)
    return _compute(_Call("forward", problem, (x, weight, bias, stride, padding, dilation, activation)))


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    problem = gpu.problem_of("grad_input", grad, input_shape, weight.shape[2:], stride, padding, dilation)
    return _compute(_Call("grad_input", problem, (grad, weight, input_shape, stride, padding, dilation)))


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    problem = gpu.problem_of("grad_weight", x, x.shape, kernel_size, stride, padding, dilation)
    return _compute(_Call("grad_weight", problem, (grad, x, kernel_size, stride, padding, dilation)))
