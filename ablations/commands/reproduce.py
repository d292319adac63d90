"""The work of `python -m ablations.reproduce`: what is missing of every table and figure, and one page of them all."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from ablations.commands.options import ReproduceOptions
from ablations.commands.parts import Part, crew_of, decider_of, machine_of, parts_of, render_alone
from ablations.records.provenance import hardware
from ablations.records.record import read_record
from ablations.registry import all_ablations, get_ablation
from ablations.report.estimate import Estimates, spoken
from ablations.report.formats import name_seeds
from ablations.report.index import headlines, write_index
from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.runner.preflight import KNOWN, check_folder, preflight
from ablations.runner.profile import measure
from ablations.runner.runs import Run
from ablations.runner.scheduler import Batch
from ablations.runner.side_by_side import Crew
from ablations.runner.signals import Interruption
from ablations.spec import Ablation

SEEDS = {"small": (0, 1, 2)}


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

    def attempt(self, what: str, step: Callable[[], object]) -> bool:
        """Run a step; whatever goes wrong in it stops nothing else. Whether nothing did."""
        try:
            step()
        except KNOWN as error:
            self.failed[what] = str(error)
        except Exception as error:
            traceback.print_exc()
            self.failed[what] = f"{type(error).__name__}: {error}"
        else:
            return True
        return False


def survey(parts: Sequence[Part], machine: Machine, report: Report) -> None:
    """Find out what is missing and what of it can run here; raises SpecError for wrong flags."""
    runs = [run for part in parts for run in part.runs]
    found = {id(finding.run): finding for finding in preflight(runs, machine, parts[0].folder.parent)}
    for part in parts:
        findings = [found[id(run)] for run in part.runs]
        part.missing = [finding.run for finding in findings if not (finding.error or finding.recorded)]
        part.recorded = sum(finding.recorded for finding in findings)
        for error in (finding.error for finding in findings if finding.error):
            report.skip(part.ablation.name, str(error))
        if part.ablation.timing and not torch.cuda.is_available():
            report.skip(part.ablation.name, "there is no NVIDIA GPU here to time; on one, nox -s gpu and this command.")


def batches(parts: Sequence[Part], estimates: Estimates) -> list[tuple[Part, list[Run]]]:
    """Missing runs of one table and seed, in the order in which they are run."""
    order = list(dict.fromkeys(run.seed for part in parts for run in part.runs))
    found = [(seed, part, [run for run in part.missing if run.seed == seed]) for seed in order for part in parts]
    found.sort(key=lambda item: (order.index(item[0]), estimates.total(item[2])))
    return [(part, runs) for _, part, runs in found if runs]


def announce(parts: Sequence[Part], estimates: Estimates, report: Report) -> None:
    """Print what will run, how long it may take, and what will not."""
    for part in parts:
        ablation, missing = part.ablation, part.missing
        todo = f"{len(missing)} of {len(part.runs)} runs to do" if part.runs else "nothing to train"
        if missing:
            todo += f", {estimates.spoken(missing)}"
        if skipped := len(part.runs) - part.recorded - len(missing):
            todo += f", {skipped} skipped"
        todo += f"; {len(part.untimed)} rows to time" if part.untimed else ""
        scheduler.say(f"{ablation.name:<19} {ablation.source:<11} {todo}")
    _tell_skipped(report)
    missing = [run for part in parts for run in part.missing]
    scheduler.say(f"in all: {len(missing)} runs, {estimates.spoken(missing)}")
    source = "seconds of training in records of the same rows and scale, on whatever machine made them"
    scheduler.say(f"(estimates: {source})\n")


def _tell_skipped(report: Report) -> None:
    for why, names in report.skipped.items():
        scheduler.say(f"skipped: {', '.join(names)}: {why}")


def carry_out(parts: Sequence[Part], crew: Crew, estimates: Estimates, report: Report) -> None:
    """Count, time and train; nothing that fails stops the rest."""
    for part in parts:
        report.attempt(part.ablation.name, partial(measure, part.ablation, part.rows, part.folder, False))
    for part in parts:
        if rows := part.untimed:
            scheduler.say(f"{part.ablation.name}: timing {len(rows)} rows on {hardware()}")
            report.attempt(part.ablation.name, partial(measure, part.ablation, rows, part.folder, True))
            report.measured += 0 if part.untimed else len(rows)
    train([part.batch.of(runs) for part, runs in batches(parts, estimates)], crew, report)


def train(wanted: Sequence[Batch], crew: Crew, report: Report) -> bool:
    """Train what is `wanted`, one after another or all together; whether nothing went wrong, which stops nothing."""
    well, before = True, len(crew.wrong)
    for some in [[batch] for batch in wanted] if crew.alone else [wanted] if wanted else []:
        names = dict.fromkeys(batch.runs[0].ablation.name for batch in some)
        seeds = sorted({run.seed for batch in some for run in batch.runs})
        scheduler.say(f"{', '.join(names)}, {name_seeds(seeds)}")
        well &= report.attempt(", ".join(names), partial(crew.execute, some))
        report.measured += sum((b.folder / "runs" / run.record_name).exists() for b in some for run in b.runs)
    report.failed |= crew.wrong
    return well and len(crew.wrong) == before


def until_decided(
    shown: Sequence[Ablation], parts: Sequence[Part], options: ReproduceOptions, crew: Crew, report: Report
) -> Callable[[], object]:
    """Say what is undecided of `shown` and what that may cost; returns what adds the seeds.

    The runs of `parts` become those that are trained then.
    """
    for part in parts:
        part.runs.clear()
        if not options.dry_run:
            check_folder(part.folder)
            report.attempt(part.ablation.name, partial(measure, part.ablation, part.rows, part.folder, False))
    decider = decider_of(shown, options, crew.machine, parts[0].folder.parent)
    decider.announce()

    def train_seed(runs: Sequence[Run]) -> bool:
        wanted = [part.add(runs) for part in parts]
        return train([batch for batch in wanted if batch.runs], crew, report)

    return partial(decider.decide, train_seed)


def everything_missing(parts: Sequence[Part], crew: Crew, report: Report) -> Callable[[], object]:
    """Say what is missing of `parts` and what that may take; returns what carries it out."""
    survey(parts, crew.machine, report)
    estimates = Estimates.of(parts[0].folder.parent)
    announce(parts, estimates, report)
    return partial(carry_out, parts, crew, estimates, report)


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
    parts = parts_of(shown, replace(options, seeds=options.seeds or SEEDS.get(options.scale, (0,))))
    crew, report, results = crew_of(options, machine_of(options)), Report(), parts[0].folder.parent
    if options.until_decided:
        work = until_decided(shown, parts, options, crew, report)
    else:
        work = everything_missing(parts, crew, report)
    if options.dry_run:
        return 0
    for part in parts:
        check_folder(part.folder)
    interrupted = False
    try:
        with crew:
            work()
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
