"""Several commands on the same folders: each run is worked on by one of them at a time.

A run's lock (`filelock`) is on what it writes: its record, and its folder of checkpoints with those of the runs it
starts from. The operating system frees locks when a process dies, of `kill -9` too, so none outlives its owner.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from ablations.runner.runs import Run, with_needs

LOCK = ".lock"


class HeldError(Exception):
    """Another process has the lock; the message names that process."""


@contextmanager
def locked(run: Run, folder: Path) -> Iterator[None]:
    """Hold what `run` writes, its record in `folder` included, throughout the block; raises HeldError at its start.

    With several processes the first one holds it for all.
    """
    record = folder / "runs" / f".{run.record_name}{LOCK}"
    folders = [each.folder.with_name(f".{each.folder.name}{LOCK}") for each in with_needs(run)]
    with ExitStack() as held:
        for path in [record, *sorted(folders)] if getattr(rank_zero_only, "rank", 0) == 0 else ():
            held.enter_context(_hold(path))
        yield


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = ""
        with suppress(OSError, ValueError):
            holder = path.read_text(encoding="utf-8").strip()
        raise HeldError(holder or "another process") from None
    try:
        with suppress(OSError):  # a full disk must not cost the lock
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Nobody else changes the results in `folder` during the block; waits for its turn, which is short."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".writing{LOCK}"):
        yield
