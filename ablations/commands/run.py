"""The work of `python -m ablations.run NAME`: train what is missing of one table of the paper, and print the table."""

import argparse
import logging
import sys
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ablations.records.record import read_record
from ablations.registry import get_ablation
from ablations.report.render import render
from ablations.runner.dry_run import dry_run
from ablations.runner.locks import writing
from ablations.runner.machine import machine_of
from ablations.runner.plan import plan
from ablations.runner.preflight import check_folder
from ablations.runner.processes import lost_another, where
from ablations.runner.profile import measure
from ablations.runner.runs import Run
from ablations.runner.scheduler import execute
from ablations.scales import get_scale
from ablations.spec import Ablation, SpecError
from replk_lightning.data import DataError
from replk_lightning.models import ModelError
from replk_lightning.models.checkpoints import CheckpointError


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
