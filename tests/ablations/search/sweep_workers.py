"""What a worker process of test_worker.py runs: a real study whose models are counted and not trained."""

import os
import time
from pathlib import Path
from typing import Any

import optuna

from ablations.runner.machine import Machine
from ablations.search.evaluate import Trial
from ablations.search.objectives import Sweep
from ablations.search.space import get_space
from ablations.search.storage import enqueue, open_storage, open_study
from ablations.search.worker import Worker

HEARTBEAT = 1
SMOKE = get_space("kernels").ablation.scales["smoke"]


def sweep() -> Sweep:
    """RepLKNets of every kernel, by size."""
    return Sweep(get_space("kernels"), SMOKE, "generated", ("macs", "parameters"), Machine(accelerator="cpu"))


def take(url: str, count: int, gate: Any, taken: Any) -> None:
    """Take `count` trials from the queue of the study `queue` as fast as they come; their numbers go into `taken`."""
    study = optuna.load_study(study_name="queue", storage=open_storage(url, HEARTBEAT))
    gate.wait(120)
    taken.put([study.ask().number for _ in range(count)])


def work(url: str, trials: int, log: Path, seconds: float, gate: Any = None) -> None:
    """Do a worker's share, spending `seconds` on each trial and writing a line into `log` as each begins and ends.

    With `gate`, a barrier, it begins when the others do.
    """
    os.chdir(log.parent)
    count = Trial._require_budget

    def slow(self, trial, run):
        with log.open("a") as file:
            file.write(f"begin {os.getpid()} {trial.number}\n")
        time.sleep(seconds)
        count(self, trial, run)
        with log.open("a") as file:
            file.write(f"end {os.getpid()} {trial.number}\n")

    Trial._require_budget = slow
    ours = sweep()
    if gate:
        gate.wait(120)
    study = open_study(ours, open_storage(url, HEARTBEAT), trials)
    enqueue(study, ours)
    Worker(study, ours, trials, heartbeat=HEARTBEAT).work()
