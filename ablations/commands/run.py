"""The work of `python -m ablations.run NAME`: train what is missing of one table of the paper, and print the table."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from ablations.commands.options import RunOptions
from ablations.commands.parts import Part, crew_of, decider_of, machine_of, parts_of, render_alone
from ablations.records.record import read_record
from ablations.registry import get_ablation
from ablations.runner.dry_run import dry_run
from ablations.runner.machine import Machine
from ablations.runner.preflight import KNOWN, check_folder, preflight, require
from ablations.runner.processes import lost_another, where
from ablations.runner.profile import measure
from ablations.runner.runs import Run
from ablations.spec import Ablation


@rank_zero_only
def conclude(shown: Ablation, parts: Sequence[Part], results: Path, wrong: Mapping[str, str]) -> int:
    """Render, print the table and name what failed and what else went wrong; the exit status."""
    for part in parts:
        if part.ablation is not shown:
            render_alone(part.ablation, part.folder)
    print(render_alone(shown, results / shown.name))
    print(f"written to {results / shown.name / 'table.md'}")
    paths = [part.folder / "runs" / run.record_name for part in parts for run in part.runs]
    records = [read_record(path) for path in paths if path.exists()]
    failures = [record for record in records if record and record.status == "failed"]
    for record in failures:
        print(f"{record.row}, seed {record.seed}: failed, {record.reason}", file=sys.stderr)
    for what, why in wrong.items():
        print(f"{what}: {why}", file=sys.stderr)
    return 2 if failures or wrong else 0


def until_decided(shown: Ablation, parts: Sequence[Part], options: RunOptions, machine: Machine) -> int:
    """Add seeds to what is undecided of `shown`; the exit status. The runs of `parts` become those that are trained."""
    results = parts[0].folder.parent
    for part in parts:
        part.runs.clear()
        if not options.dry_run:
            check_folder(part.folder)
            measure(part.ablation, part.rows, part.folder, False)
    decider = decider_of([shown], options, machine, results)
    decider.announce()
    if options.dry_run:
        return 0

    def train(runs: Sequence[Run]) -> bool:
        before, batches = len(crew.wrong), [part.add(runs) for part in parts]
        crew.execute([batch for batch in batches if batch.runs])
        return len(crew.wrong) == before

    with crew_of(options, machine) as crew:
        decider.decide(train)
    return conclude(shown, parts, results, crew.wrong) or 0


def run_ablation(options: RunOptions) -> int:
    """Everything the command asks for; the exit status."""
    shown, machine = get_ablation(options.name), machine_of(options)
    parts = parts_of([shown], options)
    if options.until_decided:
        return until_decided(shown, parts, options, machine)
    if options.timing:
        for part in parts:
            part.runs.clear()
    runs, results = [run for part in parts for run in part.runs], parts[0].folder.parent
    if options.dry_run:
        busy = {id(run.row) for run in runs}
        idle = [row for part in parts for row in part.rows if id(row) not in busy]
        named = {data for data in (options.data, options.transfer_data) if data}
        print(dry_run(runs, machine, results, named, idle))
        return 0
    require(preflight(runs, machine, results))
    for part in parts:
        check_folder(part.folder)
    for part in parts:
        measure(part.ablation, part.rows, part.folder, options.timing)
    with crew_of(options, machine) as crew:
        crew.execute([part.batch for part in parts])
    return conclude(shown, parts, results, crew.wrong) or 0


def perform(options: RunOptions) -> int:
    """`run_ablation`; an error of the user's or the disk's gives one sentence and 2."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return run_ablation(options)
    except KNOWN as error:
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
