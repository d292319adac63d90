"""The work of `python -m ablations.run NAME`: train what is missing of one table of the paper, and print the table."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ablations.records.provenance import hardware
from ablations.records.record import PredecessorError, Record, arrays_path, read_record, record_name, write_record
from ablations.registry import get_ablation
from ablations.report.render import render
from ablations.runner.dry_run import check, check_folder, dry_run, recorded
from ablations.runner.locks import HeldError, claim, writing
from ablations.runner.processes import lost_another, where
from ablations.runner.profile import count, time_rows
from ablations.runner.runs import Transfer, pretrained, transfer_of
from ablations.runner.train import ARRAYS, Machine, Run, forget, train
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, Scale, SpecError
from replk_lightning.data import DataError
from replk_lightning.files import write_atomically
from replk_lightning.models import ModelError
from replk_lightning.models.checkpoints import CheckpointError


def machine_of(arguments: argparse.Namespace, scale: Scale) -> Machine:
    """Where the command trains."""
    devices = arguments.devices or ("auto" if scale.name == "paper" else "1")
    return Machine(
        arguments.accelerator, devices, arguments.num_nodes, arguments.strategy, arguments.precision, arguments.sync_bn
    )


def plan(ablation: Ablation, rows: Sequence[Row], arguments: argparse.Namespace) -> list[Run]:
    """Every training run of `rows` that the command names, seeds outermost so that whole tables come early."""
    scale = get_scale(arguments.scale, ablation)
    seeds = list(dict.fromkeys(arguments.seeds or scale.seeds))
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise SpecError(f"seeds are whole numbers from 0 to 2³² − 1, not {min(seeds)}.")
    init = dict(entry.partition("=")[::2] for entry in arguments.init)
    ablation.select(list(init))
    if arguments.from_scratch and (init or not ablation.has("transfer")):
        reason = "--init names what to start from" if init else f"{ablation.name} carries nothing over"
        raise SpecError(f"--from-scratch is for segmentation and detection without pre-training; {reason}.")
    rows = [row for row in rows if row.trained or ablation.measure]
    rows = [row for row in rows if not row.published or scale.name == "paper"]
    data = arguments.data or scale.data
    runs: list[Run] = []
    for seed in seeds:
        for row in rows:
            run = Run(ablation, row, scale, data, seed, None if ablation.has("transfer") else init.get(row.key))
            transfer = transfer_of(run, arguments.transfer_data, init.get(row.key), arguments.from_scratch)
            runs += [run] if ablation.has("train") and not arguments.from_scratch else []
            runs += [transfer] if transfer else []
    return runs


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
        with claim(run, folder):
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
            with suppress(HeldError), claim(run, folder):
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


@rank_zero_only
def measure(ablation: Ablation, rows: Sequence[Row], folder: Path, timing: bool) -> None:
    """Count every row that has no such record yet; where asked, time all rows anew unless all have been timed."""
    runs = folder / "runs"
    if ablation.has("count"):
        for row in rows:
            path = runs / record_name(row.key, "count")
            record = read_record(path) if path.exists() else None
            if record is None or not ablation.keys("count") <= set(record.metrics):
                write_record(count(ablation, row), runs)
    if timing and ablation.timing:
        timed = all((runs / record_name(row.key, "timing", hardware=hardware())).exists() for row in rows)
        for record in () if timed else time_rows(ablation, rows):
            write_record(record, runs)


@rank_zero_only
def conclude(shown: Ablation, parts: list[tuple[Ablation, list[Run]]], results: Path) -> int:
    """Render, print the table and name what failed; the exit status. Records lie in the folders of `parts`."""
    for ablation in [home for home, _ in parts if home is not shown]:
        with writing(results / ablation.name):
            render(ablation, results / ablation.name)
    with writing(results / shown.name):
        print(render(shown, results / shown.name))
    print(f"written to {results / shown.name / 'table.md'}")
    paths = [results / ablation.name / "runs" / run.record_name for ablation, runs in parts for run in runs]
    records = [read_record(path) for path in paths if path.exists()]
    failures = [record for record in records if record and record.status == "failed"]
    for record in failures:
        print(f"{record.row}, seed {record.seed}: failed, {record.reason}", file=sys.stderr)
    return 2 if failures else 0


def run_ablation(arguments: argparse.Namespace) -> int:
    """Everything the command asks for; the exit status."""
    shown = get_ablation(arguments.name)
    wanted = {row.key for row in shown.select(arguments.rows) if not row.gain}
    parts = [(home, [row for row in home.rows if row.key in wanted]) for home in shown.homes]
    runs = [[] if arguments.timing else plan(home, rows, arguments) for home, rows in parts]
    scale = get_scale(arguments.scale, shown.homes[0])
    machine = machine_of(arguments, scale)
    if arguments.dry_run:
        planned = [run for part in runs for run in part]
        busy = {id(run.row) for run in planned}
        idle = [row for _, rows in parts for row in rows if id(row) not in busy]
        print(dry_run(planned, machine, {arguments.data, arguments.transfer_data} - {None}, idle))
        return 0
    results = arguments.results or scale.results
    for (home, rows), its_runs in zip(parts, runs, strict=True):
        check_folder(results / home.name)
        measure(home, rows, results / home.name, arguments.timing)
        execute(its_runs, results / home.name, machine)
    return conclude(shown, [(home, part) for (home, _), part in zip(parts, runs, strict=True)], results) or 0


def perform(arguments: argparse.Namespace) -> int:
    """`run_ablation`; an error of the user's or the disk's gives one sentence and 2."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return run_ablation(arguments)
    except (SpecError, DataError, ModelError, CheckpointError) as error:
        print(f"ablations.run{where()}: {error}", file=sys.stderr)
    except RuntimeError as error:
        if not lost_another(error):
            raise
        print(f"ablations.run{where()}: another process has ended; what it says is the reason.", file=sys.stderr)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(
            f"ablations.run{where()}: {what}; what is finished is kept, the same command goes on from there.",
            file=sys.stderr,
        )
    return 2
