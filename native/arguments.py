"""What a call of the operator may be given; the errors name the argument."""

import torch
import torch.nn.functional as F
from torch import Tensor

from native.geometry import Geometry, Pair, Shape, output_size
from native.geometry import check as check_sizes

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def named_padding(name: str, x: Tensor, kernel_size: Shape, stride: Pair, dilation: Pair) -> tuple[Tensor, Pair]:
    """What torch's names stand for: the padding, and x with the row and column that a symmetric padding lacks."""
    if name == "valid":
        return x, (0, 0)
    if name != "same":
        raise ValueError(f"padding must be an int, a pair of ints, 'same' or 'valid', not {name!r}")
    if max(stride) > 1:
        raise ValueError(f"padding 'same' needs stride 1, not {tuple(stride)}: give the padding in pixels")
    high, wide = (dilation[a] * (kernel_size[a] - 1) for a in (0, 1))
    return F.pad(x, (0, wide % 2, 0, high % 2)) if wide % 2 or high % 2 else x, (high // 2, wide // 2)


def check_tensor(name: str, tensor: Tensor, like: Tensor | None = None, casts: bool = False) -> None:
    """4-D (a bias: 1-D), a float type, and the device and (where autocast `casts`) dtype of `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not {tensor.layout}")
    if name != "bias" and tensor.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions, not shape {tuple(tensor.shape)}")
    if like is None:
        return
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, x is on {like.device}: move one of them")
    if tensor.dtype != like.dtype and not (casts and _autocasts(like.device.type)):
        raise TypeError(f"{name} is {tensor.dtype}, x is {like.dtype}: cast one of them, or use autocast")


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, casts: bool = False
) -> None:
    """Everything about x and weight that `check_tensor` does not see alone."""
    channels = x.shape[1]
    if channels < 1:
        raise ValueError("x must have at least one channel")
    if weight.shape[0] != channels or weight.shape[1] != 1:
        raise ValueError(
            f"weight must have shape ({channels}, 1, Kh, Kw) for x's {channels} channels, not {tuple(weight.shape)}"
        )
    if bias is not None:
        check_tensor("bias", bias, x, casts)
        if tuple(bias.shape) != (channels,):
            raise ValueError(f"bias must have shape ({channels},) for x's {channels} channels, not {tuple(bias.shape)}")
    check_sizes(x.shape[2:], weight.shape[2:], stride, padding, dilation)


def check_grad(grad: Tensor, like: Tensor, input_shape: Shape, kernel_size: Shape, *geometry: *Geometry) -> None:
    """The output's gradient fits the geometry; `like` is the other tensor of a gradient op."""
    if not isinstance(grad, Tensor) or grad.dim() != 4:
        raise ValueError("grad must be a tensor of 4 dimensions")
    if grad.dtype != like.dtype or grad.device != like.device:
        raise TypeError(f"grad is {grad.dtype} on {grad.device}, not {like.dtype} on {like.device}")
    check_sizes(input_shape[2:], kernel_size, *geometry)
    expected = (*input_shape[:2], *output_size(input_shape[2:], kernel_size, *geometry))
    if tuple(grad.shape) != expected:
        raise ValueError(f"grad must have the output's shape {expected}, not {tuple(grad.shape)}")
