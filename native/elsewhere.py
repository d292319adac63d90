"""Whether a call's result is a plain tensor of this process."""

import torch
from torch.autograd import forward_ad


def is_elsewhere() -> bool:
    """Whether the result is no plain tensor of this process, so that torch's own convolution stands in for the op.

    A file exported for other runtimes holds the convolution they know; torch.func's transforms (vmap, jvp, …) and
    forward-mode derivatives refuse every op with a Python derivative.
    """
    functorch = torch._C._functorch
    # torch.compile misreads "is not None" here, and would never see the op
    transformed = isinstance(functorch.peek_interpreter_stack(), functorch.CInterpreter)
    return transformed or torch.compiler.is_exporting() or forward_ad._current_level >= 0
