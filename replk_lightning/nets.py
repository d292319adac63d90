"""Nets by what a user types: a name of timm's, weights in a file, or a checkpoint; and how each wants its pictures."""

import argparse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from replk_lightning.data.augment import Preprocessing
from replk_lightning.models import ModelError, create_model
from replk_lightning.models.containers import UnreadableError, read
from replk_lightning.models.weights import CheckpointError, load_weights
from replk_lightning.tasks.factory import Trained, load_task

CHECKPOINTS = (".ckpt", ".pth", ".pt", ".tar", ".safetensors")
"""How files of weights are called; timm's train.py writes `.pth.tar`."""

FOLDER, HUB = "local-dir:", ("hf-hub:", "hf_hub:")
"""What timm puts before a folder's and the hub's names."""


@dataclass(frozen=True)
class Net:
    """A net that `open_net` found, on the CPU and in eval mode.

    Attributes:
        name: what it is called: timm's name, or the file's.
        weights: where they are from, in words.
        random: whether they are not trained.
        preprocessing: of its pictures.
        trained: the task that a checkpoint of this package holds; `net` is its model.
    """

    name: str
    net: nn.Module
    weights: str
    random: bool
    in_chans: int
    preprocessing: Preprocessing
    trained: Trained | None = None


def is_file(spec: str) -> bool:
    """Whether `spec` names a checkpoint, there or not, and no model of timm's."""
    return Path(spec).is_file() or (spec.endswith(CHECKPOINTS) and "@" not in spec)


def brings_weights(spec: str) -> bool:
    """Whether `spec` is a checkpoint, or a name with a file of weights."""
    return is_file(spec) or ("@" in spec and not spec.startswith(HUB))


def open_net(spec: str, *, pretrained: bool = True, seed: int = 0) -> Net:
    """The net called `NAME`, `NAME@WEIGHTS` or `CHECKPOINT`.

    Args:
        spec: NAME is timm's, `hf-hub:…` and `local-dir:…` among them, with the weights that timm has for it or those of
            the file WEIGHTS; CHECKPOINT is one that Lightning wrote of a task of this package, or timm's train.py of
            any model, which is then built as it was trained.
        pretrained: False leaves the weights of NAME random, though there are trained ones.
        seed: of random weights.

    Raises:
        ModelError: there is no such model, or its weights cannot be read or downloaded.
        CheckpointError: the file is not there, not a checkpoint, or does not fit.
    """
    if is_file(spec):
        arguments = training_arguments(Path(spec))
        return _from_timm(arguments["model"], spec, arguments) if arguments else _from_task(Path(spec))
    name, _, file = (spec, "", "") if spec.startswith((FOLDER, *HUB)) else spec.partition("@")
    known = has_weights(name)
    if not file:
        return _named(name, pretrained and known, seed)
    if not Path(file).is_file():
        raise CheckpointError(f"there is no file {file} with weights for {name}.")
    return _from_timm(name, file, training_arguments(Path(file)))


def has_weights(name: str) -> bool:
    """Whether timm has weights for `name`; raises ModelError where it is no model."""
    if name.startswith((FOLDER, *HUB)):
        return True
    if Path(name).is_dir():
        raise ModelError(f"{name} is a folder: write {FOLDER}{name} for a model that was saved there.")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(f"no model {name!r}: {error}") from error
    if config is None and not timm.is_model(name):
        raise ModelError(f"no model {name!r}: it is neither a file nor one of timm's models.")
    return config is not None and bool(config.has_weights)


def training_arguments(path: Path) -> Mapping[str, Any]:
    """Arguments of timm's train.py in a checkpoint that it wrote; none in any other file."""
    with suppress(UnreadableError, FileNotFoundError):
        found = read(path).get("args")
        if isinstance(found, argparse.Namespace) and isinstance(getattr(found, "model", None), str):
            return vars(found)
    return {}


def _named(name: str, pretrained: bool, seed: int) -> Net:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = create_model(name, pretrained=pretrained)
    except OSError as error:
        if name.startswith(FOLDER):
            raise ModelError(f"{name} cannot be read: {error}") from error
        file = f"{FOLDER}PATH" if name.startswith(HUB) else f"{name}@PATH"
        known = None if name.startswith(HUB) else timm.get_pretrained_cfg(name)
        origin = known and known.origin_url
        downloaded = f"what a browser downloads from {origin}" if origin else "what was downloaded"
        remedy = f"connect to the hub, or give {downloaded}, as {file}"
        raise ModelError(f"the weights for {name} are not here and cannot be downloaded: {remedy}.") from error
    config: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    tag = f", {config['tag']}" if config.get("tag") else ""
    weights = f"timm's{tag}" if pretrained else f"random (seed {seed})"
    if pretrained and name.startswith((FOLDER, *HUB)):
        weights = f"of {name}"
    return _with_config(name, net, weights, {}, random=not pretrained)


def _from_timm(name: str, file: str, arguments: Mapping[str, Any]) -> Net:
    """A net of timm's with the weights of a file; built by the `arguments` of train.py, if that wrote the file."""
    net = create_model(name, **_options(name, arguments))
    load_weights(net, file)
    return _with_config(Path(file).name if is_file(file) and arguments else name, net, f"of {file}", arguments)


def _options(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's train.py gave `create_model` and what shapes the net."""
    sides = arguments.get("input_size") or ()
    if not isinstance(sides, list | tuple):
        raise ModelError(f"the file's input_size is {sides!r}: timm's train.py writes three numbers.")
    channels = arguments.get("in_chans") or (sides[0] if sides else None)
    options = {"num_classes": arguments.get("num_classes"), "in_chans": channels, "global_pool": arguments.get("gp")}
    options |= arguments.get("model_kwargs") or {}
    config = timm.get_pretrained_cfg(name) if not name.startswith((FOLDER, *HUB)) else None
    if config is not None and config.fixed_input_size:
        options.setdefault("img_size", tuple(sides[1:]) or arguments.get("img_size"))
    return {key: value for key, value in options.items() if value is not None}


def _with_config(name: str, net: nn.Module, weights: str, arguments: Mapping[str, Any], random: bool = False) -> Net:
    config = resolve_model_data_config(net, args=dict(arguments))
    channels, *size = config.pop("input_size")
    preprocessing = Preprocessing(size=(size[0], size[1]), **config)
    return Net(name, net.eval(), weights, random, channels, preprocessing)


def _from_task(path: Path) -> Net:
    found = load_task(path, "weights alone need their model's name, as in resnet50@PATH")
    channels = found.task.hparams["in_chans"]
    return Net(path.name, found.task.model, f"of {path}", False, channels, found.preprocessing(), found)
