"""Trains every run that is missing, one after the other, and leaves to other commands what they are working on."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ablations.records.record import Record, arrays_path, write_record
from ablations.report.render import render
from ablations.runner.locks import HeldError, locked, writing
from ablations.runner.machine import Machine
from ablations.runner.preflight import check
from ablations.runner.runs import ARRAYS, PredecessorError, Run, Transfer
from ablations.runner.staleness import recorded
from ablations.runner.train import forget, pretrained, train
from ablations.spec import SpecError
from replk_lightning.files import write_atomically


def execute(runs: list[Run], folder: Path, machine: Machine) -> None:
    """Train every run that has no record and that no other command is working on, rendering after each.

    What another command holds is left for the end, when it may have been finished or given up, and named if it is still
    held then.
    """
    missing = [run for run in runs if not recorded(run, folder)]
    check(missing, machine)
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them recorded already")
    total = sum(run.recipe.epochs for run in missing)
    with tqdm(total=total, unit="epoch", position=0, dynamic_ncols=True, disable=not missing) as bar:
        left, before = [(run, "") for run in missing], -1
        while len(left) != before:
            before = len(left)
            tried = [(run, _attempt(run, folder, machine, bar)) for run, _ in left]
            left = [(run, holder) for run, holder in tried if holder]
    for run, holder in left:
        say(f"{run.row.key}, seed {run.seed}, is left to {holder}, which is working on it")
    tidy(runs, folder)


def _attempt(run: Run, folder: Path, machine: Machine, bar: tqdm) -> str | None:
    """Train `run` and save it, unless another command has done so or is about to; then that one's name."""
    end = bar.n + run.recipe.epochs
    alone = machine.processes == 1  # several processes must all do the same: none may find that a run is done
    try:
        with locked(run, folder):
            if not (alone and recorded(run, folder)):
                bar.set_description(f"{run.row.key}, seed {run.seed}")
                save(_trained(run, machine, bar), run, folder)
    except HeldError as holder:
        if alone:
            return str(holder)
        raise SpecError(f"{holder} is working on {run.row.key}, seed {run.seed}: wait for it, or use --rows.") from None
    bar.update(end - bar.n)
    return None


def _trained(run: Run, machine: Machine, bar: tqdm) -> Record:
    """The record of `run`; one of a failure if what it starts from failed."""
    if isinstance(run, Transfer) and run.pretraining:
        try:
            run = replace(run, init=pretrained(run.pretraining, machine))
        except PredecessorError as failure:
            lost = {"status": "failed", "reason": str(failure), "metrics": {}}
            return run.record(failure.record.hardware, run.make_data(), **lost)
    return train(run, machine, bar)


@rank_zero_only
def tidy(runs: list[Run], folder: Path) -> None:
    """Drop checkpoints of runs that have their records: those of a command killed between the two."""
    for run in runs:
        if run.folder.exists():
            with suppress(HeldError), locked(run, folder):
                if recorded(run, folder):
                    forget(run)


@rank_zero_only
def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    print(text, flush=True)


@rank_zero_only
def save(record: Record, run: Run, folder: Path) -> None:
    """Write the record and its arrays, render the table with them, and drop the checkpoint."""
    arrays = run.folder / ARRAYS
    if arrays.exists():
        write_atomically(arrays_path(record, folder / "runs"), arrays.read_bytes())
    write_record(record, folder / "runs")
    with writing(folder):
        render(run.ablation, folder)
    forget(run)
