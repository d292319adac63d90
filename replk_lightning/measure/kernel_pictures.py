"""Pictures of depthwise kernels, and how much of them lies in the middle (Appendix C, Figure 6)."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from replk_lightning.models.mobilenet import MobileNetV2
from replk_lightning.models.reparam import LargeKernelConv, fold_following_norm
from replk_lightning.models.rewriting import plain_state

LAST_STAGE = 5
"""Index of MobileNetV2's stage that works at 7×7 for a picture of 224; its first block is strided in the paper."""


class Kernels(NamedTuple):
    """Weights (C, 1, K, K) of one depthwise layer with its batch norms fused.

    `merged` is with the small kernel added onto the centre; equal to `large` where there is no small kernel.
    """

    large: Tensor
    merged: Tensor


def last_stage_layer(model: MobileNetV2) -> LargeKernelConv:
    """The first depthwise layer of stride 1 in the last stage, which Figure 6 shows."""
    layer = model.get_submodule(f"stages.{LAST_STAGE}.1.depthwise")
    assert isinstance(layer, LargeKernelConv)
    return layer


@plain_state()
def fused_kernels(layer: LargeKernelConv) -> Kernels:
    """The layer's kernels; raises ValueError if it has been merged, when its branches can no longer be told apart."""
    if layer.merged:
        raise ValueError("the layer is merged already: look at its kernels before reparameterize()")
    large, _ = fold_following_norm(layer.lkb_origin.conv, layer.lkb_origin.bn)
    if not hasattr(layer, "small_conv"):
        return Kernels(large, large)
    small, _ = fold_following_norm(layer.small_conv.conv, layer.small_conv.bn)
    margin = [(K - k) // 2 for K, k in zip(large.shape[-2:], small.shape[-2:], strict=True)]
    return Kernels(large, large + F.pad(small, (margin[1], margin[1], margin[0], margin[0])))


def depthwise_kernels(net: nn.Module) -> dict[str, Tensor]:
    """Weights (C, 1, K_h, K_w) of every depthwise ``nn.Conv2d`` of any net beyond 1×1, by the layers' names.

    Of a `LargeKernelConv` it is the one kernel that its branches are merged into.
    """
    found: dict[str, Tensor] = {}
    inside = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, LargeKernelConv))
    for name, module in net.named_modules():
        if isinstance(module, LargeKernelConv):
            found[name] = module.lkb_reparam.weight if module.merged else fused_kernels(module).merged
        elif isinstance(module, nn.Conv2d) and _is_depthwise(module) and not name.startswith(inside):
            found[name] = module.weight
    return found


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels > 1 and max(layer.kernel_size) > 1 and not is_lazy(layer.weight)


def picture(weight: Tensor) -> Tensor:
    """(C, 1, K, K) → (K, K): absolute values summed over the channels, divided by the largest."""
    total = weight.abs().sum(dim=(0, 1))
    return total / total.max()


def central_share(matrix: Tensor, side: int = 3) -> float:
    """Share of the sum of `matrix` (K_h, K_w) in its central square of odd `side`; 1 where that is not smaller.

    (side / K)² if all entries of a K × K one are equal.
    """
    top, left = (max(0, (length - side) // 2) for length in matrix.shape)
    return float(matrix[top : top + side, left : left + side].sum() / matrix.sum())
