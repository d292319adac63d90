"""What can go wrong is told before the first run, in one sentence, and not hours into it: of all commands."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ablations.records.record import read_record
from ablations.runner.machine import Machine, check_machine
from ablations.runner.runs import Run, Transfer
from ablations.runner.staleness import changes_since
from ablations.spec import SpecError
from replk_lightning.data import DataError, ImageData
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.trainer.loggers import LoggerError

KNOWN = (SpecError, DataError, ModelError, CheckpointError, LoggerError)
"""Errors whose messages are sentences for the user."""


class Finding(NamedTuple):
    """What is known of a run before anything is trained: recorded already, why it cannot be trained, or neither."""

    run: Run
    error: ValueError | None = None
    recorded: bool = False


def preflight(runs: Sequence[Run], machine: Machine, results: Path | None = None) -> Iterator[Finding]:
    """A finding a run, the cheapest to make first; raises SpecError at once for flags that nothing can run with.

    Records are looked for in the folders of their ablations under `results`. Data that several runs share are read
    once, and where they cannot be had, so say the findings of all these runs.
    """
    check_machine(machine)
    possible: list[Run] = []
    for run in runs:
        try:
            if results and recorded(run, results / run.ablation.name):
                yield Finding(run, recorded=True)
                continue
            check_start(run)
            check_shards(run, machine)
        except KNOWN as error:
            yield Finding(run, error)
        else:
            possible.append(run)
    for group in by_data(possible):
        yield from _with_data(group)


def require(findings: Iterator[Finding]) -> None:
    """Raise the first error there is, before the rest is looked at."""
    for finding in findings:
        if finding.error:
            raise finding.error


def _with_data(runs: Sequence[Run]) -> Iterator[Finding]:
    try:
        data = runs[0].make_data()
        data.setup()
    except KNOWN as error:
        yield from (Finding(run, error) for run in runs)
        return
    for run in runs:
        try:
            build_on_meta(run, data)
        except KNOWN as error:
            yield Finding(run, error)
        else:
            yield Finding(run)


def recorded(run: Run, folder: Path) -> bool:
    """Whether `run` has a readable record; raises SpecError if it is another experiment's."""
    path = folder / "runs" / run.record_name
    record = read_record(path) if path.exists() else None
    if record is None:
        return False
    if changes := changes_since(record, run.ablation, run.row, run.scale, run.recipe):
        raise SpecError(
            f"{path} was measured with another recipe, model or labels ({'; '.join(changes)}); "
            "delete it, or name a folder with --results."
        )
    return True


def check_start(run: Run) -> None:
    """Raise SpecError if `run` lacks what it starts from."""
    provided = run.init or (isinstance(run, Transfer) and (run.pretraining or run.from_scratch))
    if run.recipe.starts_from and not provided:
        raise SpecError(
            f"row {run.row.key!r} fine-tunes what {run.recipe.starts_from} trained: "
            f"give its checkpoint with {_init_of(run)}."
        )
    if run.row.published and not run.init:
        raise SpecError(f"row {run.row.key!r} is a published net: give its weights with {_init_of(run)}.")
    if run.init and not Path(run.init).is_file():
        raise SpecError(f"there is no checkpoint {run.init}, which row {run.row.key!r} is to start from.")


def _init_of(run: Run) -> str:
    return f"python -m ablations.run {run.ablation.name} --init {run.row.key}=PATH"


def check_shards(run: Run, machine: Machine) -> None:
    """Raise SpecError if `run` needs its weights whole and `machine` shards them."""
    whole = run.recipe.ema is not None or isinstance(run, Transfer) or run.needs or run.is_needed
    if "fsdp" in machine.strategy and whole:
        raise SpecError(
            f"row {run.row.key!r} cannot be trained with {machine.strategy}, whose weights lie in shards: "
            "Lightning neither averages them nor clips their gradient, and no run can start from them; use ddp."
        )


def by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by the data that they share: the same set for the same task."""
    groups: dict[tuple[str, type], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, type(run.recipe)), []).append(run)
    return list(groups.values())


def check_folder(folder: Path) -> None:
    """Raise SpecError if records cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(
            f"results cannot be written to {folder} ({error.strerror}); name a folder with --results."
        ) from None


def build_on_meta(run: Run, data: ImageData) -> nn.Module:
    """The run's model, without memory for its weights; raises ModelError."""
    with torch.device("meta"):
        return run.make_model(data)
