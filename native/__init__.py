"""Depthwise 2-D convolution for kernels from 3×3 to 63×63 (Sec. 3, Guideline 1)."""

from native.dispatch import backends, why_not
from native.ops import DepthwiseConv2d, depthwise_conv2d

__all__ = ["DepthwiseConv2d", "backends", "depthwise_conv2d", "why_not"]
