"""The emulator behind the operator's seam: backend "emulated", for CPU tensors."""

from torch import Tensor

from native import emulator, gpu_plans
from native.geometry import Pair


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """One sentence on why the emulator cannot compute this (without arguments: anything here); None if it can."""
    if why := emulator.why_not_here():
        return why
    if x is None or weight is None:
        return None
    if x.device.type != "cpu":
        return f"The emulator runs on the CPU, and x is on {x.device}."
    return gpu_plans.why_no_plan(gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation))


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
    return _clean(*emulator.forward(x, weight, bias, stride, padding, dilation, activation))


def forward_pair(x: Tensor, weight: Tensor, small: Tensor) -> tuple[Tensor, Tensor] | None:
    """x (N, C, H, W), weight (C, 1, Kh, Kw) and smaller filters → both outputs at stride 1; None if no kernel does."""
    if (pair := emulator.forward_pair(x, weight, small)) is None:
        return None
    y, small_y, report = pair
    return _clean(y, report), small_y


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    return _clean(*emulator.grad_input(grad, weight, input_shape, stride, padding, dilation))


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    return _clean(*emulator.grad_weight(grad, x, kernel_size, stride, padding, dilation))


def _clean(result: Tensor, report: emulator.Report) -> Tensor:
    if report.faults:
        raise RuntimeError(f"The emulated kernel is at fault: {report.first_fault} ({dict(report.faults)})")
    return result
