"""What Lightning leaves out: a resume that replays nothing and forgets nothing."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch

from native import autotune
from replk_lightning.distributed import of_rank_0, process


def random_state() -> dict[str, Any]:
    """The state of every generator this process draws from, in types that `weights_only` loading accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `random_state` was read."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Undo at the end what is drawn in the block."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def part_from(state: torch.Tensor) -> None:
    """Seed this process, unless it is rank 0, with its rank and what rank 0's torch generator in `state` would draw."""
    rank, _ = process()
    if rank > 0:
        ahead = torch.Generator()
        ahead.set_state(state)
        drawn = int(torch.empty((), dtype=torch.int64).random_(generator=ahead))
        own = int(np.random.SeedSequence((drawn, rank)).generate_state(1)[0])
        torch.manual_seed(own)
        np.random.seed(own)
        random.seed(own)


class ExactResume(L.Callback):
    """Store the random state with every checkpoint and restore it with the callbacks, before any loader is opened.

    Lightning restores weights, optimizers and counters but not the generators, so a resumed run would shuffle and
    augment its first epoch as the very first one was. With this callback, weights are bit-equal to an unbroken run's
    where a checkpoint is written at an epoch's end.

    Several processes start each epoch from rank 0's state, the others from a seed made of it and their rank: none
    augments or drops paths as another does, and the checkpoint, which is rank 0's, is enough for all.
    """

    def __init__(self) -> None:
        self._before = random_state()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Undo Lightning's seeding anew where it has made several processes, as it does not where there is one."""
        if stage == "fit" and trainer.world_size > 1:
            self.load_state_dict(self._before)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Part from rank 0's state of now, which the checkpoint will hold."""
        part_from(of_rank_0(torch.get_rng_state()))

    def state_dict(self) -> dict[str, Any]:
        """The generators' state now, and which of several ways the operator computes by."""
        return random_state() | {"plan": autotune.decisions()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing where the checkpoint was written, and computing as there."""
        autotune.adopt(state_dict.get("plan", {}))
        restore_random_state(state_dict)
        part_from(state_dict["torch"])


class TrainingClock(L.Callback):
    """Seconds spent training and the number of parts, over all the parts of an interrupted run.

    A part is a process whose work is in the weights: one that died before its first checkpoint does not count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.parts = 1
        self._since: float | None = None

    def _tick(self) -> None:
        now = time.monotonic()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now

    def summary(self) -> dict[str, Any]:
        """For a record: `seconds`, to a tenth, and `parts`."""
        return {"seconds": round(self.seconds, 1), "parts": self.parts}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._since = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting."""
        self._tick()

    def state_dict(self) -> dict[str, Any]:
        """Seconds until this checkpoint."""
        self._tick()
        return {"seconds": self.seconds, "parts": self.parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the seconds of the part before."""
        self.seconds = state_dict["seconds"]
        self.parts = state_dict.get("parts", 1) + 1
