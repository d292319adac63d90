"""Several processes train one run: what they have to agree on first, and what one tells of another's end."""

import re
from pathlib import Path

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from ablations.spec import SpecError
from replk_lightning.distributed import of_all, process

LOST = re.compile("connection (was )?(closed|reset)|broken pipe|socket (closed|timeout)|nccl|timed out", re.IGNORECASE)
"""What gloo and NCCL say when a process that they wait for is gone."""


class Agreed(Callback):
    """Stops all processes, in one sentence, where they would train different runs or go on from different epochs.

    They would wait for each other for ever, or average what does not belong together.
    """

    def __init__(self, run: str, checkpoint: Path) -> None:
        self.run, self.checkpoint = run, checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare before anything is loaded; raises SpecError in every process."""
        has = f"checkpoint of {self.checkpoint.stat().st_size} bytes" if self.checkpoint.exists() else "no checkpoint"
        states = of_all(f"{self.run} with {has}")
        for rank, state in enumerate(states):
            if state != states[0]:
                raise SpecError(
                    f"process 0 trains {states[0]} and process {rank} {state}: give all nodes the same command, "
                    "and start it in a folder that they share."
                )


def lost_another(error: RuntimeError) -> bool:
    """Whether `error` says no more than that another process of this run is gone."""
    return dist.is_available() and dist.is_initialized() and bool(LOST.search(str(error)))


def where() -> str:
    """Which process speaks, if there are several."""
    rank, processes = process()
    return f", process {rank} of {processes}" if processes > 1 else ""
