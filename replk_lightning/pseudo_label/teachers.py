"""Teachers: any classifier of timm, or what this package has trained, with the images as each wants them."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from replk_lightning.data.augment import Preprocessing
from replk_lightning.data.pools import Preparation
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.nets import Net, brings_weights, has_weights, is_file, open_net
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.multitask import MultiTaskClassify

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
    """The teacher called `[TASK=]NAME`, `[TASK=]NAME@WEIGHTS` or `[TASK=]CHECKPOINT`, as `open_net` says.

    A checkpoint is of ClassifyTask or MultiTaskClassify, or timm's. TASK defaults to the name of either.

    Raises:
        ModelError: there is no such model, or there are no weights for it.
        CheckpointError: the file is not there, not a checkpoint, or of something else.
    """
    task, found, where = spec.partition("=")
    if not (found and TASK.fullmatch(task)):
        task, where = "", spec
    if not (brings_weights(where) or has_weights(where)):
        remedy = f"give a file, as {where}@PATH"
        raise ModelError(f"timm has no weights for {where}, which would label at random: {remedy}.")
    net = open_net(where)
    own, outputs = _outputs(net, task, where)
    default = Path(where).stem if is_file(where) else net.name.split(".")[0]
    return Teacher(
        own or re.sub(r"\W", "_", default),
        net.name,
        net.net,
        outputs,
        net.in_chans,
        _preparation(net.preprocessing),
        fingerprint_weights(net.net),
    )


@cache
def _preparation(preprocessing: Preprocessing) -> Preparation:
    """One object for all teachers that want the same images: each view is made once."""
    return Preparation(preprocessing.size[0], preprocessing.transform())


def _outputs(net: Net, task: str, where: str) -> tuple[str, slice]:
    """The name of the task, if known, and its classes among the net's."""
    if net.trained is None:
        classes = getattr(net.net, "num_classes", 0)
        if not classes:
            raise ModelError(f"{net.name} has no classifier and cannot label images.")
        return task, slice(0, classes)
    trained = net.trained.task
    if not isinstance(trained, ClassifyTask):
        raise CheckpointError(f"{where} is no classifier's, and cannot label images.")
    if not isinstance(trained, MultiTaskClassify):
        return task, slice(0, trained.hparams["num_classes"])
    tasks = list(trained.tasks)
    if not task and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        raise CheckpointError(f"{where} has the tasks {', '.join(tasks)}: say which, as in {tasks[0]}={where}.")
    start = sum(trained.tasks[earlier] for earlier in tasks[: tasks.index(task)])
    return task, slice(start, start + trained.tasks[task])


def fingerprint_weights(net: nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
