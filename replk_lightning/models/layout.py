"""The memory layout that large kernels need to be fast."""

import torch
from torch import Tensor


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """x (N, C, H, W), on a CPU in channels_last: there oneDNN is up to 30 times faster with large kernels than in NCHW.

    With C = 1 the two layouts are the same to torch, so a network for grey pictures converts after its first layer too.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
