"""The operator that every model uses."""

import torch.nn.functional as F
from torch import Tensor, nn


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride=1, padding=None, dilation=1
) -> Tensor:
    """Convolve each channel of x (N, C, H, W) with its own filter of weight (C, 1, Kh, Kw)."""
    if padding is None:
        padding = tuple(k // 2 * dilation for k in weight.shape[-2:])
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d(channels, channels, kernel_size, groups=channels)`` through `depthwise_conv2d`."""

    def __init__(
        self, channels: int, kernel_size, stride=1, padding=None, dilation=1, bias: bool = True, device=None, dtype=None
    ):
        k = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        d = dilation if isinstance(dilation, tuple) else (dilation, dilation)
        if padding is None:
            padding = (k[0] // 2 * d[0], k[1] // 2 * d[1])
        super().__init__(
            channels, channels, k, stride, padding, dilation, groups=channels, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H', W')."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
