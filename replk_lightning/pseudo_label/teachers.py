"""Teachers: any classifier of timm, or what this package has trained, with the images as each wants them."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from replk_lightning.data.pools import Preparation
from replk_lightning.models import ModelError, create_model
from replk_lightning.models.weights import CheckpointError, load_weights
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.factory import load_task
from replk_lightning.tasks.multitask import MultiTaskClassify

CHECKPOINTS = (".ckpt", ".pth", ".pt", ".safetensors")
TASK = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class Teacher:
    """A net that labels images for one task.

    `outputs` are the task's among the net's classes; `weights` is their fingerprint.
    """

    task: str
    name: str
    net: nn.Module
    outputs: slice
    in_chans: int
    preparation: Preparation
    weights: str

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return int(self.outputs.stop - self.outputs.start)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → probabilities (N, classes) of float32."""
        logits: Tensor = self.net(images)[:, self.outputs]
        return logits.float().softmax(dim=1)


def load_teachers(specs: Iterable[str]) -> list[Teacher]:
    """Every teacher of a command line. Raises ModelError where two have one task, and as `load_teacher` does."""
    teachers = [load_teacher(spec) for spec in specs]
    tasks = [teacher.task for teacher in teachers]
    if twice := next((task for task in tasks if tasks.count(task) > 1), None):
        raise ModelError(f"two teachers label the task {twice!r}: name their tasks, as in birds=resnet50.")
    return teachers


def load_teacher(spec: str) -> Teacher:
    """The teacher called `[TASK=]NAME`, `[TASK=]NAME@WEIGHTS` or `[TASK=]CHECKPOINT`.

    NAME is timm's, with the weights that timm has for it or those of the file WEIGHTS; CHECKPOINT is one that Lightning
    wrote of ClassifyTask or MultiTaskClassify. TASK defaults to the name of either.

    Raises:
        ModelError: there is no such model, or there are no weights for it.
        CheckpointError: the file is not there, not a checkpoint, or of something else.
    """
    task, found, where = spec.partition("=")
    if not (found and TASK.fullmatch(task)):
        task, where = "", spec
    if Path(where).is_file() or (where.endswith(CHECKPOINTS) and "@" not in where):
        return _from_checkpoint(task, Path(where))
    name, _, weights = where.partition("@")
    return _from_timm(task or re.sub(r"\W", "_", name.split(".")[0]), name, weights)


def _from_timm(task: str, name: str, weights: str) -> Teacher:
    if weights and not Path(weights).is_file():
        raise CheckpointError(f"there is no file {weights} with weights for the teacher {name}.")
    if not weights:
        _require_weights(name)
    try:
        net = create_model(name, pretrained=not weights)
    except OSError as error:
        remedy = f"connect to the hub, or give a file, as {name}@PATH"
        raise ModelError(f"timm's weights for {name} are not here and cannot be downloaded: {remedy}.") from error
    if weights:
        load_weights(net, weights)
    if not getattr(net, "num_classes", 0):
        raise ModelError(f"{name} has no classifier and cannot label images.")
    config = resolve_model_data_config(net)
    channels, size, _ = config["input_size"]
    preparation = _preparation(size, tuple(sorted(config.items())))
    return _teacher(task, name, net, slice(0, net.num_classes), channels, preparation)


@cache
def _preparation(size: int, config: tuple[tuple[str, Any], ...]) -> Preparation:
    """One object for all teachers that want the same images: each view is made once."""
    return Preparation(size, create_transform(**dict(config), is_training=False))


def _require_weights(name: str) -> None:
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ModelError(f"no teacher {name!r}: it is neither a file nor one of timm's models.") from error
    if config is None or not config.has_weights:
        raise ModelError(f"timm has no weights for {name}, which would label at random: give a file, as {name}@PATH.")


def _from_checkpoint(task: str, path: Path) -> Teacher:
    found = load_task(path, "weights alone need their model's name, as in resnet50@PATH")
    trained = found.task
    if not isinstance(trained, ClassifyTask):
        raise CheckpointError(f"{path} is no classifier's, and cannot label images.")
    name, outputs = task or re.sub(r"\W", "_", path.stem), slice(0, trained.hparams["num_classes"])
    if isinstance(trained, MultiTaskClassify):
        name, outputs = _head(trained, task, path)
    preparation = Preparation(trained.recipe.resolution, found.view())
    return _teacher(name, path.name, trained.model, outputs, trained.hparams["in_chans"], preparation)


def _head(trained: MultiTaskClassify, task: str, path: Path) -> tuple[str, slice]:
    tasks = list(trained.tasks)
    if not task and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        raise CheckpointError(f"{path} has the tasks {', '.join(tasks)}: say which, as in {tasks[0]}={path}.")
    start = sum(trained.tasks[earlier] for earlier in tasks[: tasks.index(task)])
    return task, slice(start, start + trained.tasks[task])


def _teacher(task: str, name: str, net: Any, outputs: slice, in_chans: int, preparation: Preparation) -> Teacher:
    return Teacher(task, name, net.eval(), outputs, in_chans, preparation, fingerprint_weights(net))


def fingerprint_weights(net: nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
