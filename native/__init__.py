"""Depthwise 2-D convolution for kernels from 3×3 to 63×63 (Sec. 3, Guideline 1)."""

from native.acceleration import accelerate, restore
from native.conv1d import DepthwiseConv1d
from native.dispatch import backends, why_not
from native.moved import keep_old_names
from native.ops import DepthwiseConv2d, depthwise_conv2d

keep_old_names(
    "native",
    {
        "choose": "dispatch",
        "stock": "aten",
        "measured": "gpu_auto",
        "plans": "gpu_plans",
        "jit": "cpu_codegen",
        "plan": "autotune",
    },
)

__all__ = ["DepthwiseConv1d", "DepthwiseConv2d", "accelerate", "backends", "depthwise_conv2d", "restore", "why_not"]
