"""The one loop over runs, of `run`, `reproduce` and `sweep`: each run after what it needs, which is trained once.

What a run needs is trained before it, and its weights are kept for it; where that fails, so has the run. Runs that
other commands are working on are left to them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from ablations.records.record import Record, arrays_path, write_record
from ablations.runner import pseudo_labels
from ablations.runner.locks import HeldError, locked
from ablations.runner.machine import Machine
from ablations.runner.preflight import recorded
from ablations.runner.runs import ARRAYS, Run, with_needs
from ablations.runner.train import failed, forget, has_weights, train
from ablations.spec import SpecError
from replk_lightning.atomic import write_atomically


@dataclass(frozen=True)
class Batch:
    """Runs of one table, the folder of their records, and what is done after each: its results are rendered."""

    runs: Sequence[Run]
    folder: Path
    render: Callable[[], object]

    def of(self, runs: Sequence[Run]) -> "Batch":
        """The same for other `runs`."""
        return replace(self, runs=runs)


Outcome = tuple[list[str], str | None]
"""What came of a batch: what is left to other commands, and what went wrong, if something did, in sentences."""


class Scheduler:
    """Trains runs on `machine`, moving `bar` by their epochs, and hands each one's record to `finish`.

    With `folder`, where their records lie, a run is locked while it is trained. `callbacks` are more for some runs, by
    their records' names.
    """

    def __init__(
        self,
        machine: Machine,
        bar: tqdm,
        finish: Callable[[Run, Record], object],
        folder: Path | None = None,
        callbacks: Mapping[str, Sequence[Callback]] | None = None,
    ) -> None:
        self.machine, self.bar, self.finish, self.folder, self.callbacks = machine, bar, finish, folder, callbacks or {}
        self.failures: dict[Path, Record] = {}

    def work(self, runs: Sequence[Run]) -> list[tuple[Run, str]]:
        """Train `runs`; returns those that other commands hold, with who does.

        What is held is left for the end, when it may have been finished or given up.
        """
        wanted = {run.record_name: run for run in runs}
        order = dict.fromkeys(each.record_name for run in runs for each in with_needs(run))
        left, before = [(wanted[name], "") for name in order if name in wanted], -1
        while len(left) != before:
            before = len(left)
            tried = [(run, self._attempt(run)) for run, _ in left]
            left = [(run, holder) for run, holder in tried if holder]
        return left

    def _attempt(self, run: Run) -> str | None:
        """Train `run`, unless another command has done so or is about to; then that one's name."""
        alone = self.machine.processes == 1  # several processes must all do the same: none may find that a run is done
        try:
            with locked(run, self.folder) if self.folder else nullcontext():
                if self.folder and alone and recorded(run, self.folder):
                    self.bar.update(run.recipe.epochs)
                else:
                    self.finish(run, self._with_needs(run))
        except HeldError as holder:
            if alone:
                return str(holder)
            held = f"{holder} is working on {run.row.key}, seed {run.seed}"
            raise SpecError(f"{held}: wait for it, or use --rows.") from None
        return None

    def _with_needs(self, run: Run) -> Record:
        """The record of `run`, which is trained after what it needs; one of a failure if that failed."""
        if not (run.is_taught and pseudo_labels.are_written(run)):
            for need in run.needs:
                if failure := self._provide(need):
                    self.bar.update(run.recipe.epochs)
                    return failed(run, run.make_data(), why_lost(run, need, failure), failure.hardware)
            if run.is_taught:
                pseudo_labels.write_labels(run, self.machine.device)
        metrics = pseudo_labels.metrics_of(run) if run.is_taught else {}
        record = self._train(run)
        return replace(record, metrics=record.metrics | metrics) if record.status == "done" else record

    def _provide(self, need: Run) -> Record | None:
        """Train `need` unless its weights are there; its record if it failed."""
        if has_weights(need):
            return None
        if need.weights not in self.failures:
            self.bar.total = (self.bar.total or 0) + need.recipe.epochs
            self._with_needs(need)
            forget(need)
        return self.failures.get(need.weights)

    def _train(self, run: Run) -> Record:
        """The record of one run, all that it needs being there."""
        end = self.bar.n + run.recipe.epochs
        self.bar.set_description(f"{run.row.key}, seed {run.seed}")
        record = train(run, self.machine, self.bar, self.callbacks.get(run.record_name, ()))
        self.bar.update(end - self.bar.n)
        if record.status == "failed":
            self.failures[run.weights] = record
        return record


def why_lost(run: Run, need: Run, failure: Record) -> str:
    """The reason in the record of `run`, as what it needs has failed."""
    lost = f"cannot label images for {run.row.key!r}" if run.is_taught else "has nothing to start from"
    return f"row {need.row.key!r}, seed {need.seed}, {lost}: {failure.reason}"


def execute(runs: Sequence[Run], folder: Path, machine: Machine, render: Callable[[], object]) -> None:
    """Train every one of `runs` that has no record in `folder`, with `render` after each.

    What another command holds to the end is named and left to it.
    """
    missing = [run for run in runs if not recorded(run, folder)]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them recorded already")
    total = sum(run.recipe.epochs for run in missing)
    with tqdm(total=total, unit="epoch", position=0, dynamic_ncols=True, disable=not missing) as bar:
        scheduler = Scheduler(machine, bar, lambda run, record: save(record, run, folder, render), folder)
        left = scheduler.work(missing)
    for run, holder in left:
        say(left_to(run, holder))
    tidy(runs, folder)


def left_to(run: Run, holder: str) -> str:
    """That another command works on `run`, in a sentence."""
    return f"{run.row.key}, seed {run.seed}, is left to {holder}, which is working on it"


@rank_zero_only
def tidy(runs: Sequence[Run], folder: Path) -> None:
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
def save(record: Record, run: Run, folder: Path, render: Callable[[], object]) -> None:
    """Write the record and its arrays, render the results with them, and drop the checkpoint."""
    arrays = run.folder / ARRAYS
    if arrays.exists():
        write_atomically(arrays_path(record, folder / "runs"), arrays.read_bytes())
    write_record(record, folder / "runs")
    render()
    forget(run)
