"""Learning-rate schedules and optimizers that the recipes name."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from replk_lightning.recipes import Recipe


def warmup_cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear up in `warmup` steps, then a cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_multistep(step: int, milestones: Sequence[int], warmup: int, ratio: float, constant: bool = False) -> float:
    """Share of the peak learning rate at `step`: a tenth of what it was from each of the `milestones` on.

    In the first `warmup` steps it is `ratio` times that if `constant`, else it rises from there linearly.
    """
    share = 0.1 ** sum(step >= milestone for milestone in milestones)
    if step >= warmup:
        return share
    return share * (ratio if constant else ratio + (1 - ratio) * step / warmup)


def warmup_poly(step: int, steps: int, warmup: int, power: float, floor: float) -> float:
    """Share of the peak at `step` of `steps`: up in `warmup` steps, then `(1 - progress) ** power` down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    share: float = (1 - progress) ** power
    return floor + (1 - floor) * share


class Schedule(LambdaLR):
    """A learning rate step by step, which is the one of now in a resumed run as well.

    A checkpoint brings the step, converted where epochs have another length now, and the optimizer's moments. Rates,
    weight decay and momentum stay as they were configured, so that what a run says of itself is what it trains with.

    Args:
        share: share of the peak learning rate at a step.
        epoch: steps of an epoch; 1 where steps are counted whatever an epoch is.
    """

    def __init__(self, optimizer: Optimizer, share: Callable[[int], float], epoch: float) -> None:
        self.epoch = epoch
        super().__init__(optimizer, share)
        optimizer.register_load_state_dict_pre_hook(_keep_options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of a checkpoint."""
        own = {"base_lrs": self.base_lrs, "epoch": self.epoch}
        step = round(state_dict["last_epoch"] * self.epoch / state_dict.get("epoch", self.epoch))
        super().load_state_dict({**state_dict, **own, "last_epoch": step})
        self._last_lr = [base * share(step) for base, share in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def _keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    return {**state, "param_groups": [{**own, "params": then["params"]} for own, then in pairs]}


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> Optimizer:
    """SGD with momentum or AdamW over the model's parameter groups (Appendix A).

    Weight decay spares biases and 1-D parameters unless the recipe says otherwise.
    """
    groups = model if recipe.layer_decay is None else _layer_decay_groups(model, recipe, lr)
    if recipe.optimizer == "adamw":
        # float16 rounds 1e-8 to nothing, and nothing by nothing is NaN
        eps = max([1e-8, *(torch.finfo(parameter.dtype).tiny for parameter in model.parameters())])
        options: dict[str, Any] = {"opt": "adamw", "betas": (recipe.momentum, 0.999), "eps": eps}
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
