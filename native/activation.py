"""What may follow a convolution at once, where nobody wants the values before it: ReLU or ReLU6, by its name."""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 6}  # as the kernels number them


def check(activation: str | None) -> None:
    """Raise a ValueError for a name that is none."""
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS if name)
        raise ValueError(f"activation must be {names} or None, not {activation!r}")


def activated(y: Tensor, activation: str | None, inplace: bool = False) -> Tensor:
    """The activation of y; `inplace` in y's memory, which must be nobody else's."""
    if activation == "relu":
        return y.relu_() if inplace else y.relu()
    return F.relu6(y, inplace) if activation == "relu6" else y


def gradient(grad: Tensor, y: Tensor, activation: str) -> Tensor:
    """By the activation's input, for the gradient by its result y."""
    backward = torch.ops.aten
    result: Tensor = (
        backward.threshold_backward(grad, y, 0) if activation == "relu" else backward.hardtanh_backward(grad, y, 0, 6)
    )
    return result
