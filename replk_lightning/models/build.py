"""How both families are built by timm: its options, this package's checkpoints, feature maps as the nets give them."""

from contextlib import nullcontext
from typing import Any

import torch
from timm.models import build_model_with_cfg
from torch import nn

from replk_lightning.models.weights import checkpoint_filter_fn


def build(
    family: type[nn.Module],
    name: str,
    pretrained: bool,
    maps: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """The net called `name` in timm's registry, with `maps` feature maps, on `device` and in `dtype` if given.

    Raises ValueError for a `feature_cls` that would not give the maps of `forward_intermediates`.
    """
    features = options.get("feature_cls", "getter")
    if features in ("list", "dict") or (features != "getter" and options.get("norm_outputs")):
        raise ValueError(f"feature_cls is {features!r}, which does not give {name}'s maps: leave it at 'getter'")
    with nullcontext() if device is None else torch.device(device):
        net: nn.Module = build_model_with_cfg(
            family,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": tuple(range(maps)), "feature_cls": "getter"},
            **options,
        )
    return net if dtype is None else net.to(dtype)
