"""Structural re-parameterization: a small kernel trains beside a large one and is merged into it (Sec. 3, Guideline 3).

Training:  y = BN_K(DW_K×K(x)) + BN_k(DW_k×k(x))      Merged:  y = DW_K×K(x) + bias

Both branches are linear in inference mode, and a k×k kernel is a K×K kernel with zeros around it, so the merged layer
is the same function (Fig. 2). RepLKNet and the MobileNetV2 of this package share the layer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from native import DepthwiseConv2d, acceleration, depthwise_conv2d_pair
from native.geometry import pair, same_padding
from replk_lightning.models.rewriting import is_plain, plain_state, refuse_hooks, settle, with_parameters

KernelSize = int | tuple[int, int]

# Subclasses may compute something else: a norm with an activation, a convolution that standardises its weights.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
CONVOLUTIONS = (nn.Conv2d, DepthwiseConv2d, acceleration.Conv2d)


def odd_pair(name: str, size: KernelSize) -> tuple[int, int]:
    """(K_h, K_w) of a kernel size; an even one raises ValueError, because it has no centre and shifts the map."""
    both = pair(name, size)
    for k in both:
        if k < 1 or k % 2 == 0:
            raise ValueError(f"{name} is {size}, but only odd sizes keep the map in place: use {max(1, k + 1)} instead")
    return both


def small_pair(size: KernelSize, large: tuple[int, int]) -> tuple[int, int]:
    """(k_h, k_w) of a small kernel that is to lie in a large one; else ValueError."""
    small = odd_pair("small_kernel", size)
    if small[0] > large[0] or small[1] > large[1]:
        raise ValueError(f"small_kernel {small} does not fit into kernel_size {large}: use a smaller one, or None")
    return small


class ConvBN(nn.Sequential):
    """A convolution without bias, its batch norm and, if given, an activation; children `conv`, `bn`, `nonlinear`."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None):
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels))
        if activation is not None:
            layers["nonlinear"] = activation
        super().__init__(layers)


def as_affine(norm: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale s and shift t, each (C,), with which a batch norm equals s x + t in inference mode.

    Computed in `dtype`. Raises ValueError for a batch norm that keeps no running statistics.
    """
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        raise ValueError(
            "a batch norm without running statistics is not affine: build it with track_running_stats=True"
        )
    scale = torch.rsqrt(variance.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -mean.to(dtype) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.to(dtype)


def fold_following_norm(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals ``norm(conv(x))``: s W and s b + t, in float32 at least."""
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    scale, shift = as_affine(norm, wide)
    bias = shift if conv.bias is None else scale * conv.bias.to(wide) + shift
    return conv.weight.to(wide) * scale.reshape(-1, 1, 1, 1), bias


def _require_affine(name: str, branch: nn.Module) -> None:
    """Raise ValueError unless the branch called `name` is a convolution and a batch norm, and nothing else."""
    plain = branch.__class__.forward is nn.Sequential.forward
    kinds = [parametrize.type_before_parametrizations(each) for each in branch.children()]
    if not (plain and len(kinds) == 2 and kinds[0] in CONVOLUTIONS and kinds[1] in NORMS):
        found = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} holds {found}: only a plain convolution and its batch norm can be merged")


def require_batch_norm(name: str, norm: nn.Module) -> None:
    """Raise ValueError unless the module called `name` is a batch norm that carries no hooks, and nothing else."""
    refuse_hooks(name, norm)
    if type(norm) not in NORMS:
        raise ValueError(f"{name} is a {type(norm).__name__}: only a batch norm can be merged")


def _gives_its_weight_alone(branch: nn.Module) -> bool:
    """Whether a branch is the operator at stride 1 by its weight and a norm, and nobody watches or changed either."""
    conv = getattr(branch, "conv", None)
    return (
        type(branch) is ConvBN
        and type(conv) is DepthwiseConv2d
        and is_plain(branch)
        and is_plain(conv)
        and len(branch) == 2
        and (conv.stride, conv.dilation, conv.padding_mode) == ((1, 1), (1, 1), "zeros")
        and conv.padding == same_padding(conv.kernel_size, (1, 1))
        and conv.bias is None
        and conv.activation is None
    )


class LargeKernelConv(nn.Module):
    """Depthwise K×K convolution with batch norm, and a parallel k×k one whose output is added (Guideline 3, Fig. 2).

    Args:
        channels: C; input (N, C, H, W), output (N, C, ⌈H / stride⌉, ⌈W / stride⌉), no activation.
        kernel_size: K or (K_h, K_w), odd.
        stride: Of both branches.
        small_kernel: k or (k_h, k_w), odd and at most the large kernel; None for a single branch.
        dilation: Of both branches, so that the small kernel lies on the large one's grid and merging stays exact.

    Raises:
        ValueError: A size is even, or the small kernel does not fit into the large one.

    `reparameterize()` replaces the branches by one layer, `lkb_reparam`. Child names are the official release's.
    """

    lkb_reparam: DepthwiseConv2d

    def __init__(
        self,
        channels: int,
        kernel_size: KernelSize,
        stride: int = 1,
        small_kernel: KernelSize | None = None,
        dilation: int = 1,
    ):
        super().__init__()
        large = odd_pair("kernel_size", kernel_size)
        self.lkb_origin = ConvBN(DepthwiseConv2d(channels, large, stride, dilation=dilation, bias=False))
        if small_kernel is None:
            return
        small = small_pair(small_kernel, large)
        self.small_conv = ConvBN(DepthwiseConv2d(channels, small, stride, dilation=dilation, bias=False))

    @property
    def merged(self) -> bool:
        """Whether `reparameterize()` has been called."""
        return hasattr(self, "lkb_reparam")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        if self._reads_once(x):
            large, small = depthwise_conv2d_pair(x, self.lkb_origin.conv.weight, self.small_conv.conv.weight)
            both: Tensor = self.lkb_origin.bn(large) + self.small_conv.bn(small)
            return both
        y: Tensor = self.lkb_reparam(x) if self.merged else self.lkb_origin(x)
        return y + self.small_conv(x) if hasattr(self, "small_conv") else y

    def _reads_once(self, x: Tensor) -> bool:
        """Whether one call may compute both convolutions: on a GPU, where its kernel reads x once."""
        if not isinstance(x, Tensor) or x.device.type != "cuda" or not hasattr(self, "small_conv"):
            return False
        branches = self.lkb_origin, self.small_conv
        return not _has_any_global_hook() and all(map(_gives_its_weight_alone, branches))

    def reparameterize(self, name: str = "") -> None:
        """Merge the branches and their batch norms in place, as `merge_branches` does; a second call does nothing.

        `timm.utils.reparameterize_model` calls this on every layer of a model. Raises ValueError.
        """
        if not self.merged:
            merge_branches(self, "lkb_reparam", [branch for branch, _ in self.named_children()], name)


def sum_of_branches(layer: nn.Module, x: Tensor) -> Tensor:
    """What the children of a layer make of x, added up: one of them once they are merged."""
    first, *others = layer.children()
    y: Tensor = first(x)
    for branch in others:
        y = y + branch(x)
    return y


@plain_state()
def merge_branches(layer: nn.Module, into: str, branches: Sequence[str], name: str = "") -> None:
    """Replace children of `layer`, convolutions with batch norms whose outputs it adds, by one convolution.

    The merged convolution keeps device, dtype, stride, padding and dilation of the first branch, and is frozen if all
    are; pruned and parametrized weights become plain ones.

    Args:
        layer: Its children are replaced in place.
        into: The merged convolution's name in it.
        branches: Names of children, each a depthwise convolution and its batch norm. The others' taps lie on the
            first's: they are at most as large, and their dilations are multiples of its.
        name: The layer's own, for the message of an error.

    Raises:
        ValueError: A branch carries hooks, which would vanish, its batch norm keeps no running statistics, or it is no
            longer a convolution and a batch norm.
    """
    modules: list[Any] = [layer.get_submodule(branch) for branch in branches]
    for branch, module in zip(branches, modules, strict=True):
        full_name = ".".join(filter(None, (name, branch)))
        refuse_hooks(full_name, module)
        _require_affine(full_name, module)
    training = layer.training
    settle(layer.eval())
    conv = modules[0].conv
    folded = [fold_following_norm(module.conv, module.bn) for module in modules]
    weight, bias = folded[0]
    for module, (its_weight, its_bias) in zip(modules[1:], folded[1:], strict=True):
        steps = [its // grid for its, grid in zip(module.conv.dilation, conv.dilation, strict=True)]
        weight = weight + centred(its_weight, weight.shape[-2:], steps)
        bias = bias + its_bias
    merged = with_parameters(conv, weight, bias, modules)
    for branch in branches:
        delattr(layer, branch)
    setattr(layer, into, merged)
    layer.train(training)


def centred(kernel: Tensor, size: Sequence[int], steps: Sequence[int] = (1, 1)) -> Tensor:
    """(C, 1, k_h, k_w) → (C, 1, K_h, K_w), zeros but for the kernel's taps, `steps` apart around the centre."""
    wide = kernel.new_zeros(*kernel.shape[:-2], *size)
    rows, columns = (
        slice((K - 1 - (k - 1) * step) // 2, (K - 1 + (k - 1) * step) // 2 + 1, step)
        for K, k, step in zip(size, kernel.shape[-2:], steps, strict=True)
    )
    wide[..., rows, columns] = kernel
    return wide
