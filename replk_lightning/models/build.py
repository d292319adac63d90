"""How both families are built by timm: its options, this package's checkpoints, feature maps as the nets give them."""

from contextlib import nullcontext
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from replk_lightning.models.weights import checkpoint_filter_fn

_BY_HAND = "in a browser, and pass pretrained_cfg_overlay=dict(file=PATH)"


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

    Raises:
        ValueError: A `feature_cls` that would not give the maps of `forward_intermediates`.
        CheckpointError: What was fetched, or the file of `pretrained_cfg_overlay`, does not fit the options.
        OSError: The weights cannot be fetched, or there is no such file.
        RuntimeError: What was fetched, or the file, is no checkpoint.
    """
    features = options.get("feature_cls", "getter")
    if features in ("list", "dict") or (features != "getter" and options.get("norm_outputs")):
        raise ValueError(f"feature_cls is {features!r}, which does not give {name}'s maps: leave it at 'getter'")
    source = resolve_pretrained_cfg(name, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    where = source.file or source.url or source.hf_hub_id
    if pretrained and source.origin_url and not (where or source.state_dict):
        raise OSError(f"no program can fetch {name}.{source.tag}: open {source.origin_url} {_BY_HAND}")
    try:
        with nullcontext() if device is None else torch.device(device):
            net: nn.Module = build_model_with_cfg(
                family,
                name,
                pretrained,
                pretrained_filter_fn=checkpoint_filter_fn,
                feature_cfg={"out_indices": tuple(range(maps)), "feature_cls": "getter"},
                **options,
            )
    except URLError as error:
        reason = f"{where} cannot be fetched ({error.reason})"
        raise OSError(f"{reason}: open {source.origin_url or where} {_BY_HAND}") from error
    except (EOFError, UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, UnpicklingError):
            raise
        cache = options.get("cache_dir") or f"{torch.hub.get_dir()}/checkpoints"
        remedy = "or save its state_dict" if source.file else f"after deleting its copy in {cache}"
        raise RuntimeError(f"{where} cannot be read as a checkpoint of tensors: download it again {remedy}") from error
    except FileNotFoundError as error:  # timm's has no text
        raise FileNotFoundError(str(error) or f"there is no file {source.file}") from error
    return net if dtype is None else net.to(dtype)
