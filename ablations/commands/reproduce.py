"""The work of `python -m ablations.reproduce`: what is missing of every table and figure, and one page of them all."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ablations.records.provenance import hardware
from ablations.records.record import read_record, record_name
from ablations.registry import all_ablations, get_ablation
from ablations.report.estimate import Estimates, spoken
from ablations.report.index import headlines, write_index
from ablations.report.render import render
from ablations.run import parser as command
from ablations.runner import scheduler
from ablations.runner.machine import Machine, check_machine, machine_of
from ablations.runner.plan import plan
from ablations.runner.preflight import build_on_meta, by_data, check_folder, check_start
from ablations.runner.profile import measure
from ablations.runner.runs import Run
from ablations.runner.signals import Interruption
from ablations.runner.staleness import recorded
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, Scale, SpecError
from replk_lightning.data import DataError
from replk_lightning.models import ModelError
from replk_lightning.models.checkpoints import CheckpointError

KNOWN = (SpecError, DataError, ModelError, CheckpointError)
SEEDS = {"small": (0, 1, 2)}


@dataclass
class Part:
    """An ablation's share: its rows that are wanted, and what of them is to be run."""

    ablation: Ablation
    rows: list[Row]
    scale: Scale
    folder: Path
    runs: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    recorded: int = 0

    @property
    def timed_rows(self) -> list[Row]:
        """The rows to time here that have not all been timed on this hardware."""
        if self.ablation.timing is None:
            return []
        only = None if self.scale.timed is None else self.scale.timed.get(self.ablation.name, ())
        rows = [row for row in self.rows if only is None or row.key in only]
        names = [record_name(row.key, "timing", hardware=hardware()) for row in rows]
        return [] if all((self.folder / "runs" / name).exists() for name in names) else rows


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


def resolve(own: argparse.Namespace, rest: Sequence[str]) -> tuple[list[Ablation], list[Part], Machine]:
    """What is to be shown, and the parts that it is made of; raises SpecError."""
    shown = [get_ablation(name) for name in own.only] if own.only else list(all_ablations().values())
    seeds = own.seeds or SEEDS.get(own.scale, (0,))
    arguments = command().parse_args([*rest, "--scale", own.scale, "--seeds", *map(str, seeds)])
    if arguments.name:
        raise SpecError(f"tables are named with --only {arguments.name}.")
    if arguments.rows or arguments.init or arguments.list or arguments.timing:
        raise SpecError("--rows, --init, --list and --timing are for python -m ablations.run, a table at a time.")
    wanted: dict[str, set[str]] = {}
    for ablation in shown:
        keys = {row.key for row in ablation.rows if not row.gain}
        for home in ablation.homes:
            wanted.setdefault(home.name, set()).update(keys)
    parts = []
    for name, keys in wanted.items():
        home = get_ablation(name)
        scale, rows = get_scale(own.scale, home), [row for row in home.rows if row.key in keys]
        folder = (arguments.results or scale.results) / name
        parts.append(Part(home, rows, scale, folder, plan(home, rows, arguments)))
    return shown, parts, machine_of(arguments, parts[0].scale)


def survey(parts: Sequence[Part], machine: Machine, report: Report) -> None:
    """Find out what is missing and what of it can run here; raises SpecError for wrong flags."""
    check_machine(machine)
    lacking: dict[str, str] = {}  # by data set: a hub that cannot be reached is waited for once
    for part in parts:
        possible: list[Run] = []
        for run in part.runs:
            try:
                if recorded(run, part.folder):
                    part.recorded += 1
                    continue
                check_start(run)
                possible.append(run)
            except KNOWN as error:
                report.skip(part.ablation.name, str(error))
        for data, group in by_data(possible):
            name = group[0].data
            if name in lacking:
                report.skip(part.ablation.name, lacking[name])
                continue
            try:
                data.setup()
                for run in group:
                    build_on_meta(run, data)
                part.missing += group
            except KNOWN as error:
                report.skip(part.ablation.name, str(error))
                if isinstance(error, DataError):
                    lacking[name] = str(error)
        part.missing.sort(key=possible.index)
        if part.ablation.timing and not torch.cuda.is_available():
            report.skip(part.ablation.name, "there is no NVIDIA GPU here to time; on one, nox -s gpu and this command.")


def batches(parts: Sequence[Part], estimates: Estimates) -> list[tuple[Part, list[Run]]]:
    """Missing runs of one table and seed, in the order in which they are run."""
    found = [
        (seed, part, [run for run in part.missing if run.seed == seed])
        for seed in dict.fromkeys(run.seed for part in parts for run in part.runs)
        for part in parts
    ]
    order = list(dict.fromkeys(seed for seed, _, _ in found))
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
        todo += f"; {len(part.timed_rows)} rows to time" if part.timed_rows else ""
        scheduler.say(f"{ablation.name:<19} {ablation.source:<11} {todo}")
    _tell_skipped(report)
    missing = [run for part in parts for run in part.missing]
    scheduler.say(f"in all: {len(missing)} runs, {estimates.spoken(missing)}")
    source = "seconds of training in records of the same rows and scale, on whatever machine made them"
    scheduler.say(f"(estimates: {source})\n")


def _tell_skipped(report: Report) -> None:
    for why, names in report.skipped.items():
        scheduler.say(f"skipped: {', '.join(names)}: {why}")


def carry_out(parts: Sequence[Part], todo: Sequence[tuple[Part, list[Run]]], machine: Machine, report: Report) -> None:
    """Count, time and train; nothing that fails stops the rest."""
    for part in parts:
        report.attempt(part.ablation.name, partial(measure, part.ablation, part.rows, part.folder, False))
    for part in parts:
        if rows := part.timed_rows:
            scheduler.say(f"{part.ablation.name}: timing {len(rows)} rows on {hardware()}")
            report.attempt(part.ablation.name, partial(measure, part.ablation, rows, part.folder, True))
            report.measured += 0 if part.timed_rows else len(rows)
    for part, runs in todo:
        scheduler.say(f"{part.ablation.name}, seed {runs[0].seed}")
        report.attempt(part.ablation.name, partial(scheduler.execute, runs, part.folder, machine))
        report.measured += sum((part.folder / "runs" / run.record_name).exists() for run in runs)


@rank_zero_only
def conclude(shown: Sequence[Ablation], parts: Sequence[Part], report: Report) -> int:
    """Render everything and the index, tell what came of it; the exit status."""
    results, homes = parts[0].folder.parent, [part.ablation for part in parts]
    for name, ablation in all_ablations().items():
        if any(home in homes for home in ablation.homes):
            report.attempt(name, partial(render, ablation, results / name))
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


def reproduce(own: argparse.Namespace, rest: Sequence[str], interruption: Interruption) -> int:
    """Everything the command asks for; the exit status."""
    started = time.monotonic()
    if own.scale == "smoke":  # whether code runs does not depend on which of several equal ways is fastest
        os.environ.setdefault("REPLK_CPU_PLAN", "fixed")
    shown, parts, machine = resolve(own, rest)
    report = Report()
    survey(parts, machine, report)
    estimates = Estimates.of(parts[0].folder.parent)
    announce(parts, estimates, report)
    if own.dry_run:
        return 0
    for part in parts:
        check_folder(part.folder)
    interrupted = False
    try:
        carry_out(parts, batches(parts, estimates), machine, report)
    except KeyboardInterrupt:
        interrupted = True
    status = conclude(shown, parts, report) or 0
    if interrupted:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        status = interruption.status
    scheduler.say(f"took {spoken(time.monotonic() - started)}")
    return status
