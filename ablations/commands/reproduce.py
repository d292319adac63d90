"""The work of `python -m ablations.reproduce`: what is missing of every table and figure, and one page of them all."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from ablations.commands.options import ReproduceOptions
from ablations.commands.parts import Part, machine_of, parts_of, render_alone
from ablations.records.provenance import hardware
from ablations.records.record import read_record
from ablations.registry import all_ablations, get_ablation
from ablations.report.estimate import Estimates, spoken
from ablations.report.index import headlines, write_index
from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.runner.preflight import KNOWN, check_folder, preflight
from ablations.runner.profile import measure, untimed
from ablations.runner.runs import Run
from ablations.runner.signals import Interruption
from ablations.spec import Ablation, Row

SEEDS = {"small": (0, 1, 2)}


@dataclass
class Todo:
    """What is left to do of a part."""

    part: Part
    missing: list[Run]
    recorded: int = 0

    @property
    def untimed(self) -> list[Row]:
        """The rows to time here that have not all been timed on this hardware."""
        return untimed(self.part.ablation, self.part.rows, self.part.scale, self.part.folder)


@dataclass
class Report:
    """What is told at the end."""

    measured: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def skip(self, what: str, why: str) -> None:
        """Note that `what` is not run."""
        names = self.skipped.setdefault(why, [])
        if what not in names:
            names.append(what)

    def attempt(self, what: str, step: Callable[[], object]) -> None:
        """Run a step; whatever goes wrong in it stops nothing else."""
        try:
            step()
        except KNOWN as error:
            self.failed[what] = str(error)
        except Exception as error:
            traceback.print_exc()
            self.failed[what] = f"{type(error).__name__}: {error}"


def survey(parts: Sequence[Part], machine: Machine, report: Report) -> list[Todo]:
    """Find out what is missing and what of it can run here; raises SpecError for wrong flags."""
    runs = [run for part in parts for run in part.runs]
    found = {id(finding.run): finding for finding in preflight(runs, machine, parts[0].folder.parent)}
    todo = []
    for part in parts:
        findings = [found[id(run)] for run in part.runs]
        missing = [finding.run for finding in findings if not (finding.error or finding.recorded)]
        todo.append(Todo(part, missing, sum(finding.recorded for finding in findings)))
        for finding in findings:
            if finding.error:
                report.skip(part.ablation.name, str(finding.error))
        if part.ablation.timing and not torch.cuda.is_available():
            report.skip(part.ablation.name, "there is no NVIDIA GPU here to time; on one, nox -s gpu and this command.")
    return todo


def batches(todo: Sequence[Todo], estimates: Estimates) -> list[tuple[Part, list[Run]]]:
    """Missing runs of one table and seed, in the order in which they are run."""
    order = list(dict.fromkeys(run.seed for each in todo for run in each.part.runs))
    found = [
        (seed, each.part, [run for run in each.missing if run.seed == seed])
        for seed in order
        for each in todo
    ]  # fmt: skip
    found.sort(key=lambda item: (order.index(item[0]), estimates.total(item[2])))
    return [(part, runs) for _, part, runs in found if runs]


def announce(todo: Sequence[Todo], estimates: Estimates, report: Report) -> None:
    """Print what will run, how long it may take, and what will not."""
    for each in todo:
        ablation, runs, missing = each.part.ablation, each.part.runs, each.missing
        line = f"{len(missing)} of {len(runs)} runs to do" if runs else "nothing to train"
        if missing:
            line += f", {estimates.spoken(missing)}"
        if skipped := len(runs) - each.recorded - len(missing):
            line += f", {skipped} skipped"
        line += f"; {len(each.untimed)} rows to time" if each.untimed else ""
        scheduler.say(f"{ablation.name:<19} {ablation.source:<11} {line}")
    _tell_skipped(report)
    missing = [run for each in todo for run in each.missing]
    scheduler.say(f"in all: {len(missing)} runs, {estimates.spoken(missing)}")
    source = "seconds of training in records of the same rows and scale, on whatever machine made them"
    scheduler.say(f"(estimates: {source})\n")


def _tell_skipped(report: Report) -> None:
    for why, names in report.skipped.items():
        scheduler.say(f"skipped: {', '.join(names)}: {why}")


def carry_out(todo: Sequence[Todo], machine: Machine, estimates: Estimates, report: Report) -> None:
    """Count, time and train; nothing that fails stops the rest."""
    for part in (each.part for each in todo):
        report.attempt(part.ablation.name, partial(measure, part.ablation, part.rows, part.folder, False))
    for each in todo:
        if rows := each.untimed:
            name = each.part.ablation.name
            scheduler.say(f"{name}: timing {len(rows)} rows on {hardware()}")
            report.attempt(name, partial(measure, each.part.ablation, rows, each.part.folder, True))
            report.measured += 0 if each.untimed else len(rows)
    for part, runs in batches(todo, estimates):
        scheduler.say(f"{part.ablation.name}, seed {runs[0].seed}")
        render = partial(render_alone, part.ablation, part.folder)
        report.attempt(part.ablation.name, partial(scheduler.execute, runs, part.folder, machine, render))
        report.measured += sum((part.folder / "runs" / run.record_name).exists() for run in runs)


@rank_zero_only
def conclude(shown: Sequence[Ablation], parts: Sequence[Part], results: Path, report: Report) -> int:
    """Render everything and the index, tell what came of it; the exit status."""
    homes = [part.ablation for part in parts]
    for name, ablation in all_ablations().items():
        if any(home in homes for home in ablation.homes):
            report.attempt(name, partial(render_alone, ablation, results / name))
    for part in parts:
        for run in part.runs:
            path = part.folder / "runs" / run.record_name
            record = read_record(path) if path.exists() else None
            if record and record.status == "failed":
                report.failed[f"{part.ablation.name} {record.row}, seed {record.seed}"] = record.reason or "no reason"
    index = write_index(results)
    scheduler.say("\n" + headlines(results, [ablation.name for ablation in shown]))
    scheduler.say(f"\nmeasured now: {report.measured}")
    _tell_skipped(report)
    for what, why in report.failed.items():
        print(f"failed: {what}: {why}", file=sys.stderr)
    scheduler.say(f"written to {index}")
    return 2 if report.failed else 0


def reproduce(options: ReproduceOptions, interruption: Interruption) -> int:
    """Everything the command asks for; the exit status."""
    started = time.monotonic()
    if options.scale == "smoke":  # whether code runs does not depend on which of several equal ways is fastest
        os.environ.setdefault("REPLK_CPU_PLAN", "fixed")
    shown = [get_ablation(name) for name in options.only] if options.only else list(all_ablations().values())
    parts = parts_of(shown, options, seeds=SEEDS.get(options.scale, (0,)))
    machine, report, results = machine_of(options), Report(), parts[0].folder.parent
    todo, estimates = survey(parts, machine, report), Estimates.of(results)
    announce(todo, estimates, report)
    if options.dry_run:
        return 0
    for part in parts:
        check_folder(part.folder)
    interrupted = False
    try:
        carry_out(todo, machine, estimates, report)
    except KeyboardInterrupt:
        interrupted = True
    status = conclude(shown, parts, results, report) or 0
    if interrupted:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        status = interruption.status
    scheduler.say(f"took {spoken(time.monotonic() - started)}")
    return status


def perform(options: ReproduceOptions, interruption: Interruption) -> int:
    """`reproduce`; an error of the user's gives one sentence and 2."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return reproduce(options, interruption)
    except KNOWN as error:
        print(f"ablations.reproduce: {error}", file=sys.stderr)
        return 2
