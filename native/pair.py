"""Two filters on one input, as a re-parameterized layer has them in training (Sec. 3, Guideline 3): one op.

Each branch's batch norm needs its own output, so the two cannot be merged before training ends; but x can be read once
for both. Which code computes is `native.dispatch`'s business; where no kernel reads x once, it is two calls of the op
of one filter.
"""

from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing
from torch.utils.flop_counter import register_flop_formula

from native.arguments import check, check_tensor
from native.dispatch import resolve
from native.elsewhere import is_elsewhere
from native.geometry import Geometry, same_padding
from native.ops import Gradients, depthwise_conv2d, format_of, gradients, library, multiply_adds, register

library.define("depthwise_conv2d_pair(Tensor x, Tensor weight, Tensor small_weight, str backend) -> (Tensor, Tensor)")
_one = torch.ops.replk.depthwise_conv2d.default
_pair = torch.ops.replk.depthwise_conv2d_pair.default


def depthwise_conv2d_pair(
    x: Tensor, weight: Tensor, small_weight: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """``depthwise_conv2d(x, weight)`` and ``depthwise_conv2d(x, small_weight)``, at stride 1 (Guideline 3).

    On a GPU, in fp16, bf16 and tf32, one kernel may compute both and read x once: "auto" measures whether it is faster.

    Args:
        x: (N, C, H, W), as `depthwise_conv2d` takes it.
        weight: (C, 1, Kh, Kw).
        small_weight: (C, 1, kh, kw); none is larger than `weight`'s where one kernel is to compute both.
        backend: as `depthwise_conv2d` takes it.

    Returns:
        Two of (N, C, H, W) for odd kernels, in x's memory format.

    Raises:
        TypeError, ValueError, RuntimeError: as `depthwise_conv2d` does.
    """
    alone = not isinstance(x, Tensor) or (backend == "auto" and x.device.type != "cuda")
    if alone or is_tracing() or is_elsewhere():
        return depthwise_conv2d(x, weight, backend=backend), depthwise_conv2d(x, small_weight, backend=backend)
    for each in (weight, small_weight):
        check_tensor("weight", each, x, casts=True)
    y, small_y = _pair(x, weight, small_weight, backend)
    return y, small_y


def _geometry(weight: Tensor) -> Geometry:
    return (1, 1), same_padding(weight.shape[2:], (1, 1)), (1, 1)


def _two(x: Tensor, weight: Tensor, small_weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    y, small_y = (_one(x, each, None, *_geometry(each), backend) for each in (weight, small_weight))
    return y, small_y


def _run(x: Tensor, weight: Tensor, small_weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    check_tensor("x", x)
    for each in (weight, small_weight):
        check_tensor("weight", each, x)
        check(x, each, None, *_geometry(each))
    both = None
    if x.shape[0]:
        module = resolve(backend, x, weight, *_geometry(weight))
        both = module.forward_pair(x, weight, small_weight) if hasattr(module, "forward_pair") else None
    if both is None:
        return _two(x, weight, small_weight, backend)
    y, small_y = (each.contiguous(memory_format=format_of(x)) for each in both)
    return y, small_y


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # of an output that no loss has seen nothing is computed


def _backward(ctx: Any, *grads: Tensor | None) -> Gradients:
    x, *weights = ctx.saved_tensors
    wants_x, *wants, _ = ctx.needs_input_grad
    (gx, gw), (small_gx, small_gw) = (
        (None, None) if grad is None else gradients(grad, x, weight, (*_geometry(weight), ctx.backend), wants_x, wanted)
        for grad, weight, wanted in zip(grads, weights, wants, strict=True)
    )
    by_x = [each for each in (gx, small_gx) if each is not None]
    return sum(by_x[1:], by_x[0]) if by_x else None, gw, small_gw, None


register(_pair, _run, _two, _keep, _backward, casts=True)


@register_flop_formula(torch.ops.replk.depthwise_conv2d_pair)
def _flops(x: Any, weight: Any, small_weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return sum(multiply_adds(out, each) for out, each in zip(out_shape, (weight, small_weight), strict=True))
