"""The names of RepLKNet's CUDA extension, computed by the operator: what the files of ``python -m native shim`` import.

RepLKNet, UniRepLKNet, SLaK and their heirs import a module or autograd functions from
``depthwise_conv2d_implicit_gemm``, and copies of that file import the compiled ``_depthwise_conv2d_implicit_gemm_C``.
"""

import torch
from torch import Tensor

from native.geometry import Pair, same_padding
from native.ops import DepthwiseConv2d, depthwise_conv2d

ONE = (1, 1)


class DepthWiseConv2dImplicitGEMM(DepthwiseConv2d):
    """The extension's module: a K×K depthwise convolution of stride 1 that keeps the size, for odd K.

    Takes (N, C, H, W) of any float dtype on any device, where the extension took float32 and float16 on GPUs. Has
    `weight` (C, 1, K, K) and `bias` (C,), as its checkpoints hold them; `padding` says what is padded, so that code
    that merges branches builds the right layer.
    """

    def __init__(self, channels: int, kernel_size: int | Pair, bias: bool = False):
        super().__init__(channels, kernel_size, bias=bias)


class _Function:
    """What `apply` of the extension's autograd functions does, in their dtype whatever autocast says."""

    dtype: torch.dtype

    @classmethod
    def apply(cls, x: Tensor, weight: Tensor) -> Tensor:
        """x (N, C, H, W), weight (C, 1, K, K) → (N, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            return depthwise_conv2d(x.to(cls.dtype), weight.to(cls.dtype))


class _DepthWiseConv2dImplicitGEMMFP32(_Function):
    dtype = torch.float32


class _DepthWiseConv2dImplicitGEMMFP16(_Function):
    dtype = torch.float16


# --- the compiled functions ------------------------------------------------------------------------------------------


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C, H, W), weight (C, 1, K, K) → (N, C, H, W)."""
    y: Tensor = torch.ops.replk.depthwise_conv2d(x, weight, None, ONE, same_padding(weight.shape[2:], ONE), ONE, "auto")
    return y


def backward_data(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient by x, of the shape of the output's gradient."""
    padding = same_padding(weight.shape[2:], ONE)
    gx: Tensor = torch.ops.replk.depthwise_conv2d_grad_input(grad, weight, grad.shape, ONE, padding, ONE, "auto")
    return gx


def backward_filter(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient by weight, of its shape."""
    padding = same_padding(weight.shape[2:], ONE)
    gw: Tensor = torch.ops.replk.depthwise_conv2d_grad_weight(grad, x, weight.shape[2:], ONE, padding, ONE, "auto")
    return gw
