"""The operator as the framework computes it: the slow twin of every backend, and the way out where a backend cannot."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from native.activation import activated
from native.geometry import Pair, same_padding


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """Always None: torch computes every depthwise convolution on every device."""
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
    return activated(F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0]), activation, inplace=True)


def two_calls(forward: Callable[..., Tensor], x: Tensor, weight: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    """What a backend's `forward_pair` computes, by two calls of its `forward`: its slow twin."""
    one = (1, 1)
    y, small_y = (forward(x, w, None, one, same_padding(w.shape[2:], one), one) for w in (weight, small))
    return y, small_y


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    # Only x's shape and layout are read, but torch copies what has no memory of its own.
    memory_format = torch.channels_last if grad.stride(1) == 1 else torch.contiguous_format
    same = grad.shape == tuple(input_shape)
    x = grad if same else torch.empty(input_shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    return _backward(grad, x, weight, stride, padding, dilation, (True, False, False))[0]


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    weight = x.new_empty(x.shape[1], 1, *kernel_size)  # only its shape is read
    return _backward(grad, x, weight, stride, padding, dilation, (False, True, False))[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, wanted: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    call = torch.ops.aten.convolution_backward.default
    groups, zero = weight.shape[0], (0, 0)
    gradients: tuple[Tensor, ...] = call(
        grad, x, weight, None, stride, padding, dilation, False, zero, groups, list(wanted)
    )
    return gradients
