"""From the command line's words to a sweep, its study, and a worker's share of it."""

import logging
import re
import sys
from concurrent.futures import as_completed

import optuna

from ablations.commands.options import SweepOptions
from ablations.runner.machine import Machine
from ablations.runner.preflight import KNOWN, check_folder, preflight, require
from ablations.runner.runs import WORK
from ablations.runner.side_by_side import Processes
from ablations.scales import get_scale
from ablations.search.objectives import OBJECTIVES, Sweep
from ablations.search.report import report
from ablations.search.space import get_space
from ablations.search.storage import enqueue, open_storage, open_study
from ablations.search.worker import Worker
from ablations.spec import SpecError

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def search(options: SweepOptions) -> None:
    """Do this worker's share of the sweep and write its tables; raises what `preflight.KNOWN` names."""
    sweep = sweep_of(options)
    check(sweep, options)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is told in one line, not with a traceback
    study = open_study(sweep, open_storage(options.storage, options.heartbeat), options.trials)
    enqueue(study, sweep)
    folder = options.results or WORK / "sweeps" / sweep.name
    check_folder(folder)
    try:
        if options.jobs > 1:
            side_by_side(options, sweep)
        else:
            worker_of(study, sweep, options).work()
    except (KeyboardInterrupt, SpecError):
        report(study, sweep, folder)
        raise
    print(report(study, sweep, folder, remeasure=options.remeasure))


def worker_of(study: optuna.Study, sweep: Sweep, options: SweepOptions, quiet: bool = False) -> Worker:
    """A worker of `study`."""
    return Worker(study, sweep, options.trials, options.timeout, options.heartbeat, quiet)


def side_by_side(options: SweepOptions, sweep: Sweep) -> None:
    """Do the same with several workers, a process each; raises what the first of them does that fails."""
    if "latency" in sweep.objectives:
        print("latency: timed while other trials train; --remeasure times all nets in one pass at the end.")
    with Processes(sweep.machine, options.jobs) as processes:
        for worker in as_completed([processes.submit(work, options) for _ in range(options.jobs)]):
            processes.result(worker)


def work(options: SweepOptions) -> None:
    """One worker's share, in a process of its own."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = sweep_of(options)
    study = open_study(sweep, open_storage(options.storage, options.heartbeat), options.trials)
    worker_of(study, sweep, options, quiet=True).work()


def sweep_of(options: SweepOptions) -> Sweep:
    """What the command names; raises SpecError."""
    space = get_space(options.space)
    objectives = tuple(dict.fromkeys(options.objectives))
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown:
        raise SpecError(f"there is no objective {unknown[0]!r}; choose from {', '.join(OBJECTIVES)}.")
    if not 0 <= options.seed < 2**32:
        raise SpecError(f"a seed is a whole number from 0 to 2³² − 1, not {options.seed}.")
    scale = get_scale(options.scale, space.ablation)
    return Sweep(
        space=space,
        scale=scale,
        data=options.data or scale.data,
        objectives=objectives,
        machine=Machine(accelerator=options.accelerator, precision=options.precision, loggers=options.logger),
        transfer_data=options.transfer_data,
        max_parameters=amount("--max-parameters", options.max_parameters),
        max_macs=amount("--max-macs", options.max_macs),
        seed=options.seed,
    )


def amount(option: str, text: str | None) -> float | None:
    """`5M` → 5e6; raises SpecError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([KMG]?)", text.upper())
    if match is None:
        raise SpecError(f"{option} is a number, with K, M or G after it or not, and not {text!r}.")
    return float(match[1]) * UNITS[match[2]]


def check(sweep: Sweep, options: SweepOptions) -> None:
    """Raise what `preflight.KNOWN` names for what would stop every trial."""
    for option, value in (("trials", options.trials), ("heartbeat", options.heartbeat)):
        if value < 1:
            raise SpecError(f"--{option} is a positive number, not {value}.")
    if options.timeout is not None and not options.timeout >= 0:
        raise SpecError(f"--timeout is a number of seconds, 0 or more, and not {options.timeout:g}.")
    if options.trials > sweep.space.size:
        raise SpecError(f"space {sweep.space.name!r} has {sweep.space.size} points: ask for no more --trials.")
    require(preflight(sweep.runs(sweep.space.start), sweep.machine))


def perform(options: SweepOptions) -> int:
    """`search`; an error of the user's gives one sentence and 2."""
    try:
        search(options)
    except KNOWN as error:
        print(f"ablations.sweep: {error}", file=sys.stderr)
        return 2
    return 0
