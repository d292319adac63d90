"""Small models with statistics that a forgotten batch norm cannot hide behind."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TINY = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 10}
REPLKNETS = ("replknet_3", "replknet_7", "replknet_13", "replknet_25", "replknet_31b", "replknet_31l", "replknet_xl")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random running statistics, scales and shifts in every batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            if norm.affine:
                norm.weight.data.uniform_(0.5, 1.5, generator=generator)
                norm.bias.data.normal_(0, 0.3, generator=generator)
    return model


def relative(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
