"""Learning-rate schedules and optimizers that the recipes name."""

import math
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from replk_lightning.recipes import Recipe


def warmup_cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear up in `warmup` steps, then a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the model's parameter groups (Appendix A).

    Weight decay spares biases and 1-D parameters unless the recipe says otherwise.
    """
    groups = model if recipe.layer_decay is None else _layer_decay_groups(model, recipe, lr)
    if recipe.optimizer == "adamw":
        options: dict[str, Any] = {"opt": "adamw", "betas": (recipe.momentum, 0.999), "eps": 1e-8}
    else:
        options = {"opt": "momentum", "momentum": recipe.momentum}  # timm's "sgd" is Nesterov's variant
    return create_optimizer_v2(
        groups, lr=lr, weight_decay=recipe.weight_decay, filter_bias_and_bn=not recipe.decay_norm_and_bias, **options
    )


def _layer_decay_groups(model: Any, recipe: Recipe, lr: float) -> list[dict[str, Any]]:
    assert recipe.layer_decay is not None
    layers = group_parameters(model, model.group_matcher(coarse=recipe.decay_by_stage), reverse=True)
    last = max(layers.values())
    skip = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decays = recipe.decay_norm_and_bias or (parameter.ndim > 1 and name not in skip)
        layer = layers[name]
        group = {
            "params": [],
            "lr": lr * recipe.layer_decay ** (last - layer),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())
