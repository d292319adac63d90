"""The memory layout in which a device is fast."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


def fast_layout(x: Tensor) -> torch.memory_format | None:
    """channels_last where convolutions on x, or in the autocast dtype of its device, want it; None elsewhere.

    On a CPU oneDNN is up to 30 times faster there with large kernels than in NCHW. On a GPU cuDNN's 1×1 convolutions
    in 16 bits want it, and in float32 they do not. That rule for GPUs is by design; our kernels take both layouts, and
    `replk_lightning.measure.layouts` times a net in both.
    """
    if x.device.type == "cpu":
        return torch.channels_last
    if x.device.type != "cuda":
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return torch.channels_last if dtype.itemsize == 2 else None


def in_fast_layout(x: Tensor, wanted: torch.memory_format | None = None) -> Tensor:
    """x (N, C, H, W) in the layout `wanted`, or else in the one in which its device is fast.

    So is its gradient on a CPU: the NCHW one of an average pool makes the batch norm before it up to ten times slower.
    With C = 1 the two layouts are the same to torch, so a network for grey pictures converts after its first layer too.
    """
    if not isinstance(x, Tensor):  # a stand-in: torch.fx traces
        return handle_torch_function(in_fast_layout, (x,), x, wanted)
    layout = wanted or fast_layout(x)
    if layout is None:
        return x
    if torch._C._functorch.peek_interpreter_stack() is not None:  # torch.vmap knows no memory formats
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if layout is torch.channels_last else x
    x = x.contiguous(memory_format=layout)
    if x.requires_grad and not x.is_leaf and x.device.type == "cpu" and not torch.compiler.is_compiling():
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=layout))  # a compiler chooses by itself
    return x


channels_last_on_cpu = in_fast_layout  # the old name, in graphs of torch.fx that were saved; for one version
