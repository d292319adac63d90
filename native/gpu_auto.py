"""What "auto" means on a GPU: the fastest of our kernels, torch's and, for large kernels, the frequency domain.

The first call of a shape runs all, compares two channels with float64, and times those that are right. What was found
is kept on disk, by GPU, driver, versions and our kernels' sources; nearby shapes share it, and the first process or
thread that finds decides for all. Only findings are kept: after an error that may pass, as when memory is short, torch
computes the call and the next one asks again. While a CUDA graph is being captured nothing is measured or loaded: what
this process has not computed before goes to torch.

The frequency domain (`native.fft`) is asked where counted work says that it may win, and also where no kernel of ours
takes the filter; what it needs beside its result is bounded by `FFT_MEMORY`.
"""

import functools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from native import aten, autotune, cache, fft, gpu, gpu_plans
from native.accuracy import Result, on_two_channels
from native.aten import two_calls
from native.geometry import Pair, same_padding
from native.gpu_plans import Problem, Target
from native.gpu_plans.problem import ELEMENTS

ROUNDS = 5  # interleaved, so that a busy moment hits all
BATCH = 1.0  # milliseconds of launches timed as one, so that the GPU is timed and not Python
MOST = 50  # launches of a batch
# Multiply-adds for each pixel of the FFT's period from which it is timed: it moves some 50 bytes a pixel, in which time
# an A100 does 200 multiply-adds in fp32, newer GPUs more, and on tensor cores 2500; half of that is on the safe side.
FFT_WORK, FFT_WORK_ON_TENSOR_CORES = 200, 1250
FFT_MEMORY = 2**30  # bytes beside the result
_chosen: dict[tuple[str, Problem, bool, bool, int], str] = {}


class _Call(NamedTuple):
    """A call of one of the three functions, or of forward_pair, as every module takes it."""

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
        kernel = f"{' tf32' * p.tf32}{' last' * p.last}"  # which of ours computes it
        small = f" beside {p.small}" if p.small else ""
        return f"{named}{kernel}{' bias' * self.bias}{f' {p.activation}' if p.activation else ''}{small}"

    def by(self, module: Any) -> Any:
        """The result, or a pair of them."""
        return getattr(module, self.function)(*self.arguments)

    def errors(self, result: Any) -> list[Result | None]:
        """Of each result: how far two of its channels are from float64."""
        p = self.problem
        if p.small is None:
            return [on_two_channels(self.function, result, self.arguments, p.tf32)]
        x, *filters = self.arguments
        calls = ((x, w, None, p.stride, same_padding(w.shape[2:], p.dilation), p.dilation) for w in filters)
        return [on_two_channels("forward", y, call, p.tf32) for y, call in zip(result, calls, strict=True)]


def _modules(function: str) -> dict[str, Any]:
    """Who may compute, by the names of the choice on disk; the first unless another is clearly faster."""
    if function == "forward_pair":  # or else two calls of forward, and who computes each is its own choice
        return {"torch": SimpleNamespace(forward_pair=functools.partial(two_calls, forward)), "nvrtc": gpu}
    return {"torch": aten, "nvrtc": gpu, "fft": fft}


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """One sentence on why there is nothing to choose from (without arguments: on this machine); None if there is."""
    why = gpu.why_not(x, weight, stride, padding, dilation)
    if why is None or x is None or weight is None or gpu.why_not(x) is not None:
        return why
    p = gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation)
    device = torch.cuda.current_device() if x.device.index is None else x.device.index
    return None if _fft_may_win(p, gpu.target(device)) else why


def _fft_takes(p: Problem) -> bool:
    """Whether the frequency domain computes this at all, and in little enough memory."""
    if p.dtype not in ELEMENTS or (p.stride, p.dilation) != ((1, 1), (1, 1)):
        return False
    needed = fft.channel_bytes(p.batch, (p.height, p.width), p.kernel, p.padding)
    return max(fft.MEMORY, needed) <= FFT_MEMORY


@functools.lru_cache(maxsize=4096)
def _fft_may_win(p: Problem, target: Target) -> bool:
    """Whether the direct way's multiply-adds on pixels are many for each pixel of the period."""
    if not _fft_takes(p):
        return False
    size = (p.height, p.width)
    taps = (sum(max(0, min(k, n + q - i) - max(0, q - i)) for i in range(o))
            for n, k, q, o in zip(size, p.kernel, p.padding, p.output, strict=True))  # fmt: skip
    ours_is_fast = target.tensor_cores(p) and gpu_plans.why_no_plan(p, target) is None
    least = FFT_WORK_ON_TENSOR_CORES if ours_is_fast else FFT_WORK
    return math.prod(taps) >= least * math.prod(fft.period(size, p.kernel, p.padding))


def _able(call: _Call, target: Target) -> dict[str, Any]:
    """Those of `_modules` that can compute a call, fast or not: a choice of nearby shapes may name any."""
    ours = gpu_plans.why_no_plan(call.problem, target) is None
    able = {"torch": True, "nvrtc": ours, "fft": _fft_takes(call.problem)}
    return {name: module for name, module in _modules(call.function).items() if able[name]}


@functools.cache
def _folder(device: int) -> Path | None:
    """Where this GPU's findings are kept; None where there is no home directory."""
    versions = f"torch {torch.__version__} cudnn {torch.backends.cudnn.version()} driver {gpu.driver_version()}"
    named = f"{torch.cuda.get_device_name(device)} {versions} kernels {gpu.kernels_digest()}"
    return cache.folder_if_any("gpu", cache.slug(named))


def _milliseconds(call: Callable[[], object], launches: int = 1) -> float:
    """Of one of several calls in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(launches):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / launches


def _times(call: _Call, ways: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of this call by each; what is hopeless is timed once."""
    calls = {name: functools.partial(call.by, module) for name, module in ways.items()}
    for warm_up in calls.values():  # cuDNN chooses
        warm_up()
    times = {name: [_milliseconds(timed)] for name, timed in calls.items()}
    quick = {name: ms[0] for name, ms in times.items() if ms[0] <= autotune.HOPELESS * min(min(times.values()))}
    for _ in range(ROUNDS if len(quick) > 1 else 0):
        for name, ms in quick.items():
            launches = min(MOST, math.ceil(BATCH / max(ms, BATCH / MOST)))
            times[name].append(_milliseconds(calls[name], launches))
    return {name: statistics.median(ms[1:] or ms) / 1e3 for name, ms in times.items()}


def _is_right(call: _Call, name: str) -> bool | None:
    """Whether a result is as close to float64 as torch's; None where float64 is not finite, so that it cannot say.

    Raises:
        CompilationError: NVRTC refused our kernel.
    """
    for result in call.errors(call.by(_modules(call.function)[name])):
        if result is None:
            return None
        if result.holds:
            continue
        if name == "nvrtc":  # of few taps torch's sums round less than an FFT: no fault to warn of
            what = f"{call.function} in {call.problem.number}"
            warnings.warn(
                f"The CUDA kernel for {what} is wrong on {torch.cuda.get_device_name()} (error {result.error:.1e}, "
                f"torch's {result.torch_error:.1e}); torch computes it instead.",
                RuntimeWarning,
                stacklevel=2,
            )
        return False
    return True


def _find(call: _Call, target: Target) -> tuple[Mapping[str, float] | None, bool]:
    """Seconds of those that are right, none if torch alone is, None where that cannot be said; whether for good."""
    ways, for_good = {"torch": _modules(call.function)["torch"]}, True
    for name, module in _able(call, target).items():
        if name == "torch" or (name == "fft" and not _fft_may_win(call.problem, target)):
            continue
        try:
            right = _is_right(call, name)
        except gpu.CompilationError as error:
            warnings.warn(f"torch computes what a CUDA kernel cannot: {error}", RuntimeWarning, stacklevel=2)
            continue
        except RuntimeError:
            if name != "fft":
                raise
            for_good = False  # memory is short for it
            continue
        if right is None:
            return None, True
        if right:
            ways[name] = module
    return (_times(call, ways) if len(ways) > 1 else {}), for_good


def _decide(call: _Call, device: int) -> tuple[str, bool]:
    """Who computes this call, and whether later ones of this process too."""
    if torch.cuda.is_current_stream_capturing():
        return "torch", False
    folder, target = _folder(device), gpu.target(device)
    ways, named = _able(call, target), call.shape_class
    named += "".join(f" no {name}" for name in _modules(call.function) if name not in ways)  # nearby shapes may have it
    kept = autotune.recall(folder, named, ways) if folder else None
    try:
        if kept is not None:
            if kept == "nvrtc":
                gpu.prepare(call.function, call.problem, call.bias, device)
            return kept, True
        times, for_good = _find(call, target)
    except torch.OutOfMemoryError:
        return "torch", False
    except RuntimeError as error:
        warnings.warn(f"The CUDA kernels do not run now, torch computes: {error}", RuntimeWarning, stacklevel=2)
        return "torch", True  # of this process
    if times is None:
        return "torch", False
    choice = autotune.fastest(times) if times else "torch"
    keeps = folder if for_good else None
    return (keeps and autotune.remember(keeps, named, choice, times, ways)) or choice, True


def _compute(call: _Call) -> Any:
    """The result, or a pair of them, of the module that is right and fast for this call."""
    device = call.map.device.index
    number = torch.cuda.current_device() if device is None else device
    key = (call.function, call.problem, call.bias, call.map.stride(1) == 1, number)
    choice = _chosen.get(key)
    if choice is None:
        with torch.cuda.device(number):
            choice, stays = _decide(call, number)
        if stays:
            choice = _chosen.setdefault(key, choice)
    return call.by(_modules(call.function)[choice])


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
    y: Tensor = _compute(_Call("forward", problem, (x, weight, bias, stride, padding, dilation, activation)))
    return y


def forward_pair(x: Tensor, weight: Tensor, small: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both outputs, by one kernel if that is faster than two calls of `forward`; None if there is none."""
    problem = gpu.pair_problem_of(x, weight, small)
    if problem is None:
        return None
    both: tuple[Tensor, Tensor] = _compute(_Call("forward_pair", problem, (x, weight, small)))
    return both


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    problem = gpu.problem_of("grad_input", grad, input_shape, weight.shape[2:], stride, padding, dilation)
    gx: Tensor = _compute(_Call("grad_input", problem, (grad, weight, input_shape, stride, padding, dilation)))
    return gx


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    problem = gpu.problem_of("grad_weight", x, x.shape, kernel_size, stride, padding, dilation)
    gw: Tensor = _compute(_Call("grad_weight", problem, (grad, x, kernel_size, stride, padding, dilation)))
    return gw
