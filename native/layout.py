"""In which layout tensors lie, and how the kernels want them: for the GPU and the emulator."""

import torch
from torch import Tensor


def is_last(x: Tensor) -> bool:
    """Whether x lies in memory as channels_last does and planes do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(last: bool) -> torch.memory_format:
    """torch's word for channels_last, or for planes."""
    return torch.channels_last if last else torch.contiguous_format


def empty(like: Tensor, shape: tuple[int, ...], last: bool) -> Tensor:
    """A new tensor of another's dtype and device, in channels_last if `last`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(last))


def aligned(tensor: Tensor, last: bool = False) -> Tensor:
    """Contiguous, in channels_last if `last`, at an address that every vector access may use."""
    tensor = tensor.contiguous(memory_format=memory_format(last))
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
