"""From the command line's words to a sweep, its study, and a worker's share of it."""

import argparse
import logging
import re

import optuna

from ablations.runner.machine import Machine, check_machine
from ablations.runner.preflight import build_on_meta, check_folder
from ablations.runner.runs import WORK
from ablations.scales import get_scale
from ablations.search.objectives import Sweep
from ablations.search.report import report
from ablations.search.space import get_space
from ablations.search.storage import enqueue, open_storage, open_study
from ablations.search.worker import Worker
from ablations.spec import OBJECTIVES, SpecError

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def search(arguments: argparse.Namespace) -> None:
    """Do this worker's share of the sweep and write its tables; raises SpecError, DataError or ModelError."""
    sweep = sweep_of(arguments)
    check(sweep, arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is told in one line, not with a traceback
    study = open_study(sweep, open_storage(arguments.storage, arguments.heartbeat), arguments.trials)
    enqueue(study, sweep)
    folder = arguments.results or WORK / "sweeps" / sweep.name
    check_folder(folder)
    worker = Worker(study, sweep, arguments.trials, arguments.timeout, arguments.heartbeat)
    try:
        worker.work()
    except (KeyboardInterrupt, SpecError):
        report(study, sweep, folder)
        raise
    print(report(study, sweep, folder, remeasure=arguments.remeasure))


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """What the command names; raises SpecError."""
    space = get_space(arguments.space)
    objectives = tuple(dict.fromkeys(arguments.objectives))
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown:
        raise SpecError(f"there is no objective {unknown[0]!r}; choose from {', '.join(OBJECTIVES)}.")
    if not 0 <= arguments.seed < 2**32:
        raise SpecError(f"a seed is a whole number from 0 to 2³² − 1, not {arguments.seed}.")
    scale = get_scale(arguments.scale, space.ablation)
    return Sweep(
        space=space,
        scale=scale,
        data=arguments.data or scale.data,
        objectives=objectives,
        machine=Machine(accelerator=arguments.accelerator, precision=arguments.precision),
        transfer_data=arguments.transfer_data,
        max_parameters=amount("--max-parameters", arguments.max_parameters),
        max_macs=amount("--max-macs", arguments.max_macs),
        seed=arguments.seed,
    )


def amount(option: str, text: str | None) -> float | None:
    """`5M` → 5e6; raises SpecError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([KMG]?)", text.upper())
    if match is None:
        raise SpecError(f"{option} is a number, with K, M or G after it or not, and not {text!r}.")
    return float(match[1]) * UNITS[match[2]]


def check(sweep: Sweep, arguments: argparse.Namespace) -> None:
    """Raise SpecError, DataError or ModelError for what would stop every trial."""
    for option in ("trials", "heartbeat"):
        if getattr(arguments, option) < 1:
            raise SpecError(f"--{option} is a positive number, not {getattr(arguments, option)}.")
    if arguments.trials > sweep.space.size:
        raise SpecError(f"space {sweep.space.name!r} has {sweep.space.size} points: ask for no more --trials.")
    check_machine(sweep.machine)
    for run in sweep.runs(sweep.space.start):
        data = run.make_data()
        if sweep.trains:
            data.setup()
        build_on_meta(run, data)
