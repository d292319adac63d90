"""Checkpoints that survive: written whole or not at all, and read only if nothing is wrong with them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from replk_lightning.atomic import write_atomically

PARTS = ("state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "callbacks", "loops")
"""What Lightning writes and a run needs to go on."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but for the way to the disk.

    Lightning writes to the system's temporary folder and moves the file, which copies it where that is another file
    system: a kill then leaves a torn checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace the file at `path`, whole or not at all; raises OSError where the disk is full."""
        write_atomically(Path(path), serialized(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain containers; whatever else a file holds is refused, not run."""
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content


def serialized(content: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def why_unreadable(path: Path) -> str | None:
    """What is wrong with the file at `path`, of which every byte is held against its checksum; None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return "it is damaged (wrong checksum)"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what readers of archives and pickles make of torn and hostile files
        return f"it is damaged ({type(error).__name__})"
    return None


def why_not_resume(path: Path, task: L.LightningModule) -> str | None:
    """Why training `task` cannot go on from the checkpoint at `path`, in a few words; None if it can.

    A sharded checkpoint, which is a folder, is taken as it is.
    """
    if path.is_dir():
        return None
    if damage := why_unreadable(path):
        return damage
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict | list) for part in PARTS):
        return "it is not a checkpoint of a training run"
    if content["hyper_parameters"] != dict(task.hparams):
        return "it is another experiment's"
    return None if _shapes(content["state_dict"]) == _shapes(task.state_dict()) else "it is of another model"


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()} if isinstance(state, dict) else {}
