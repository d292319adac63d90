"""From a trained model to the fastest equal one: branches merged, every batch norm folded, eval, channels_last."""

import copy
from itertools import pairwise

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from replk_lightning.models.reparam import LargeKernelConv, as_affine, fold_following_norm, set_parameters
from replk_lightning.models.replknet import ConvFFN, RepLKBlock, RepLKNet


@torch.no_grad()
def deploy(model: nn.Module) -> nn.Module:
    """A copy for inference that computes the same function with less work (Sec. 3, Guideline 3; Sec. 4.1).

    Large and small kernels become one, a batch norm after a convolution goes into it, one before a 1×1 convolution
    into that one, and RepLKNet's last one into the linear head behind the average pool (`forward_features` of the copy
    is then the map before that norm). A batch norm with no layer to take it, as at the end of RepLKNet-XL's feature
    maps, stays.

    Args:
        model: A model of this package, its feature extractor, or any module that contains them; left alone.

    Returns:
        The copy, in eval mode and channels_last, on the same device and in the same dtype; its output equals
        ``model.eval()``'s to 1e-5 relative in float32, 1e-10 in float64.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if isinstance(module, LargeKernelConv):
            module.reparameterize()
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            _fold_backward(module)
        elif isinstance(module, RepLKBlock):
            module.prelkb_bn = _fold_forward(module.prelkb_bn, module.pw1[0])
        elif isinstance(module, ConvFFN):
            module.preffn_bn = _fold_forward(module.preffn_bn, module.pw1[0])
        elif isinstance(module, RepLKNet) and module.global_pool.pool_type == "avg":
            module.norm = _fold_forward(module.norm, module.head)
    return model.to(memory_format=torch.channels_last)


def _fold_backward(layers: nn.Sequential) -> None:
    """Fold every batch norm that follows a convolution directly."""
    children = dict(layers.named_children())
    for before, after in pairwise(children):
        conv, norm = children[before], children[after]
        # A BatchNormAct2d holds an activation too, which must not vanish.
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm) and not isinstance(norm, BatchNormAct2d):
            set_parameters(conv, *fold_following_norm(conv, norm))
            setattr(layers, after, nn.Identity())


def _fold_forward(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Fold a batch norm into the 1×1 convolution or linear layer behind it; returns what is left in its place.

    W(s x + t) + b = (W s) x + (W t + b). Only for layers without padding: a padded zero is not t.
    """
    if not isinstance(norm, _BatchNorm) or not isinstance(layer, nn.Conv2d | nn.Linear):
        return norm
    scale, shift = as_affine(norm, torch.promote_types(layer.weight.dtype, torch.float32))
    weight = layer.weight.to(scale.dtype)
    bias = weight.flatten(1) @ shift
    if layer.bias is not None:
        bias = bias + layer.bias.to(scale.dtype)
    set_parameters(layer, weight * scale.reshape(-1, *[1] * (weight.ndim - 2)), bias)
    return nn.Identity()
