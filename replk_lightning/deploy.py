"""From a trained model to the fastest equal one: branches merged, every batch norm folded, eval, channels_last."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from replk_lightning.models.reparam import LargeKernelConv, fold_following_norm
from replk_lightning.models.replknet import ConvFFN, RepLKBlock, RepLKNet


def deploy(model: nn.Module) -> nn.Module:
    """A copy for inference that computes the same function with less work (Sec. 3, Guideline 3; Sec. 4.1).

    Large and small kernels become one, a batch norm after a convolution goes into it, one before a 1×1 convolution into
    that one, and RepLKNet's last one into the linear head behind the average pool (`forward_features` of the copy is then
    the map before that norm). A batch norm with no convolution to take it, as at the end of a feature extractor, stays.

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
        if isinstance(module, RepLKBlock):
            module.prelkb_bn = _fold_forward(module.prelkb_bn, module.pw1[0])
        elif isinstance(module, ConvFFN):
            module.preffn_bn = _fold_forward(module.preffn_bn, module.pw1[0])
        elif isinstance(module, RepLKNet) and module.global_pool.pool_type == "avg":
            module.norm = _fold_forward(module.norm, module.head)
    return model.to(memory_format=torch.channels_last)


def _fold_backward(layers: nn.Sequential) -> None:
    """Fold every batch norm that follows a convolution directly."""
    names = list(layers._modules)
    for before, after in zip(names, names[1:], strict=False):
        conv, norm = layers._modules[before], layers._modules[after]
        # The exact types: timm's batch norms with an activation inside are subclasses.
        if isinstance(conv, nn.Conv2d) and type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):
            conv.weight, conv.bias = fold_following_norm(conv, norm)
            setattr(layers, after, nn.Identity())


@torch.no_grad()
def _fold_forward(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Fold a batch norm into the 1×1 convolution or linear layer behind it; what is left in its place.

    W(s x + t) + b = (W s) x + (W t + b). Only layers without padding: a padded zero is not t.
    """
    if not isinstance(norm, _BatchNorm) or not isinstance(layer, nn.Conv2d | nn.Linear):
        return norm
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    scale, shift = _affine(norm, wide)
    weight = layer.weight.to(wide)
    bias = torch.zeros_like(weight[:, 0].flatten()) if layer.bias is None else layer.bias.to(wide)
    per_input = scale.reshape(-1, *[1] * (weight.ndim - 2))
    folded_bias = bias + weight.flatten(1) @ shift
    layer.weight = nn.Parameter((weight * per_input).to(layer.weight.dtype))
    layer.bias = nn.Parameter(folded_bias.to(layer.weight.dtype))
    return nn.Identity()


def _affine(norm: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale s and shift t with which the batch norm equals s x + t in inference mode."""
    mean, var, weight, bias = (v.to(dtype) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    scale = weight * torch.rsqrt(var + norm.eps)
    return scale, bias - mean * scale
