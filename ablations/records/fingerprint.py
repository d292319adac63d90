"""What a net and a data set are, in 16 hexadecimal digits: a record keeps them, and rendering compares them."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replk_lightning.models import ModelError, create_model
from replk_lightning.models.detectors import create_detector
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import DetectRecipe, SegmentRecipe

GREY = {"mnist5k", "fashion-mnist"}
"""Data of one channel; all others have three. A data module would know, and import Lightning."""


def model_fingerprint(net: nn.Module) -> str:
    """16 hexadecimal digits of every weight's name and shape, and of how every convolution steps over its input.

    Works on the meta device. What leaves no trace there, an activation or a shortcut, is not seen.
    """
    lines = [f"{name} {tuple(tensor.shape)}" for name, tensor in net.state_dict().items()]
    lines += [
        f"{name} {module.stride} {module.padding} {module.dilation} {module.groups}"
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def built(
    model: str, options: Mapping[str, Any], data: str | None, head: Mapping[str, Any] | None = None
) -> str | None:
    """Fingerprint of the net that today's code builds; None if it builds none.

    `head` is the recipe of a segmenter or detector, which is built for its classes, a classifier for its own: no data
    are read.
    """
    return _built(json.dumps([model, options, 1 if data in GREY else 3, head], sort_keys=True))


@cache
def _built(said: str) -> str | None:
    model, options, channels, head = json.loads(said)
    options["in_chans"] = channels
    try:
        with torch.device("meta"):
            if head is None:
                return model_fingerprint(create_model(model, **options))
            recipe = _dense_recipe(head)
            create: Any = create_segmenter if isinstance(recipe, SegmentRecipe) else create_detector
            return model_fingerprint(create(model, recipe, recipe.num_classes, **options))
    except (ModelError, TypeError):
        return None


def _dense_recipe(said: Mapping[str, Any]) -> SegmentRecipe | DetectRecipe:
    kind = SegmentRecipe if said["head"] in ("upernet", "deeplabv3plus") else DetectRecipe
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in said.items() if name in known})


@cache
def data_fingerprints() -> dict[str, dict[str, str]]:
    """`{data set: {side of the image: fingerprint}}` from fingerprints.toml."""
    text = Path(__file__).with_name("fingerprints.toml").read_text(encoding="utf-8")
    sets: dict[str, dict[str, str]] = tomllib.loads(text)
    return sets
