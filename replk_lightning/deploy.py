"""From a trained model to the fastest equal one: branches merged, norms folded, activations fused."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parallel import DistributedDataParallel

from native import DepthwiseConv2d
from native.copying import copied
from replk_lightning.measure.layouts import fastest_layout
from replk_lightning.models.blocks import ConvFFN, RepLKBlock
from replk_lightning.models.classifier import classifiers
from replk_lightning.models.layout import fast_layout
from replk_lightning.models.mobilenet import InvertedResidual
from replk_lightning.models.reparam import CONVOLUTIONS, NORMS, LargeKernelConv, as_affine, fold_following_norm
from replk_lightning.models.replknet import RepLKNet
from replk_lightning.models.rewriting import is_plain, plain_state, refuse_hooks, settle, with_parameters
from replk_lightning.models.spatial import SpatialLayer

FUSED: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
BLOCKS = ((RepLKBlock, "large_kernel", "lk_nonlinear"), (InvertedResidual, "depthwise", "nonlinear"))
"""Blocks whose depthwise layer is followed by an activation, and what they call both."""


@plain_state()
def deploy(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """A copy for inference that computes the same function with less work (Sec. 3, Guideline 3; Sec. 4.1).

    Large and small kernels become one, as do the branches of other spatial layers; a batch norm after a convolution
    goes into it, one before a 1×1 convolution into that one, and RepLKNet's last one into the linear head behind the
    average pool: what `forward_features`, and `forward_head` with `pre_logits`, give of the copy is then before that
    norm. A batch norm with no layer to take it, as at the end of RepLKNet-XL's feature maps, stays. A ReLU or ReLU6
    behind a depthwise convolution becomes its `activation`, unless either carries hooks.

    Args:
        model: A model of this package, its feature extractor, or any module that contains them; left alone. Layers that
            several places share are folded for each; pruned and parametrized weights become plain ones. Of a
            DistributedDataParallel the net inside is taken.
        images: (N, C, H, W) as the model will get them, on its device and in its dtype: the copy is timed on them in
            both layouts, and its nets of this package get the faster one as `memory_format`, unless one of them has a
            `memory_format`. For a net that will run under autocast ask `measure.layouts.fastest_layout` instead.

    Returns:
        The copy, in eval mode, on the same device and in the same dtype, whatever autocast and defaults say, and in the
        layout measured on `images`, or else the one in which convolutions are fast there by rule: channels_last, but
        for a GPU in strict float32. Its output equals ``model.eval()``'s to 1e-5 relative in float32, 1e-10 in float64.
        Parameters made of frozen ones only are frozen.

    Raises:
        TypeError: The model, or one inside it, is TorchScript.
        ValueError: A module that would be folded carries hooks or a forward of its own, or a large kernel's branch is
            no convolution with a batch norm that keeps running statistics.
    """
    if isinstance(model, DistributedDataParallel):  # it knows the parameters and buffers that it was built with
        model = model.module
    if any(isinstance(module, ScriptModule) for module in model.modules()):
        raise TypeError("a net of TorchScript cannot be rewritten: deploy the net first, and trace that")
    model = settle(copied(model).eval())
    for name, module in list(model.named_modules()):
        own: Any = module if isinstance(module, LargeKernelConv | SpatialLayer) else None
        if hasattr(own, "reparameterize"):
            own.reparameterize(name)
    for name, module in list(model.named_modules()):
        if _is_own(module, RepLKBlock, "forward") or _is_own(module, ConvFFN, "forward"):
            module.pw1 = copy.deepcopy(module.pw1)  # another block may use it, behind another norm
            _fold_forward(name, module, "prelkb_bn" if isinstance(module, RepLKBlock) else "preffn_bn", "pw1.conv")
        elif _is_own(module, RepLKNet, "forward", "forward_features", "forward_head") and _averages(module):
            _fold_forward(name, module, "norm", "head")
    for name, module in list(model.named_modules()):
        if type(module).forward is nn.Sequential.forward:
            _fold_backward(name, module)
            for before, after in pairwise(_busy(module)):
                _fuse(module, before, after)
        for kind, large, activation in BLOCKS:
            if _is_own(module, kind, "forward") and _is_own(getattr(module, large), LargeKernelConv, "forward"):
                setattr(module, large, copy.deepcopy(getattr(module, large)))  # as above
                _fuse(module, f"{large}.lkb_reparam", activation)
    layout = fast_layout(next(model.parameters(), torch.empty(0, device="cpu")))
    nets = classifiers(model).values()
    if images is not None and nets and all(net.layout is None for net in nets):
        layout = fastest_layout(model, images)
        for net in nets:
            net.memory_format = layout
    if layout is not None:
        model.to(memory_format=layout)
    for net in nets:
        if net.memory_format is not None:  # or activations and weights would lie apart
            net.to(memory_format=net.memory_format)
    return model


def _is_own(module: Any, kind: type[nn.Module], *methods: str) -> bool:
    """Whether a module of `kind` computes as that does; a subclass may look at a norm's output elsewhere too."""
    return isinstance(module, kind) and all(
        getattr(type(module), name) is getattr(kind, name) and name not in vars(module) for name in methods
    )


def _averages(net: RepLKNet) -> bool:
    return getattr(net.global_pool, "pool_type", None) == "avg"  # a user's own pooling has none


def _is_affine(norm: nn.Module | None) -> bool:
    """Whether a module is a batch norm that multiplies and adds in inference."""
    return type(norm) in NORMS and getattr(norm, "running_mean", None) is not None


def _fold_backward(name: str, layers: nn.Module) -> None:
    """Fold every batch norm that follows a convolution directly in a sequence."""
    for before, after in pairwise(layers._modules):  # children() would leave out those that come twice
        conv: Any = layers._modules[before]
        norm: Any = layers._modules[after]
        if type(conv) in CONVOLUTIONS and _is_affine(norm) and not getattr(conv, "activation", None):
            refuse_hooks(f"{name}.{before}", conv)
            refuse_hooks(f"{name}.{after}", norm)
            setattr(layers, before, with_parameters(conv, *fold_following_norm(conv, norm), (conv, norm)))
            setattr(layers, after, nn.Identity())


def _busy(layers: nn.Module) -> list[str]:
    """Names of a sequence's layers that compute something or are watched."""
    each: Any = layers._modules  # named_children() would leave out those that come twice
    return [name for name, layer in each.items() if type(layer) is not nn.Identity or not is_plain(layer)]


def _fuse(owner: nn.Module, conv: str, activation: str) -> None:
    """Let a depthwise convolution of `owner` compute the activation that is next, if nobody watches what is between."""
    layer, following, parent = owner.get_submodule(conv), owner.get_submodule(activation), conv.rpartition(".")[0]
    between = [layer, following, *([owner.get_submodule(parent)] if parent else [])]
    if type(layer) is not DepthwiseConv2d or layer.activation is not None:
        return
    if type(following) in FUSED and all(map(is_plain, between)):
        fused: Any = copy.deepcopy(layer)  # it may be in use elsewhere
        fused.activation = FUSED[type(following)]
        owner.set_submodule(conv, fused)
        owner.set_submodule(activation, nn.Identity())


def _fold_forward(name: str, owner: nn.Module, before: str, after: str) -> None:
    """Fold a batch norm of `owner` into the 1×1 convolution or linear layer behind it.

    W(s x + t) + b = (W s) x + (W t + b). Only for layers without padding: a padded zero is not t.
    """
    norm: Any = owner.get_submodule(before)
    layer: Any = owner.get_submodule(after)
    if not _is_affine(norm) or type(layer) not in (nn.Conv2d, nn.Linear):
        return
    entrance = after.partition(".")[0]
    for each in (before, entrance):
        refuse_hooks(".".join(filter(None, (name, each))), owner.get_submodule(each))
    scale, shift = as_affine(norm, torch.promote_types(layer.weight.dtype, torch.float32))
    weight = layer.weight.to(scale.dtype)
    bias = weight.flatten(1) @ shift
    if layer.bias is not None:
        bias = bias + layer.bias.to(scale.dtype)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 2))
    owner.set_submodule(after, with_parameters(layer, weight, bias, (layer, norm)))
    setattr(owner, before, nn.Identity())
