"""The same runs as jobs of a cluster: submitit hands them to SLURM or, where there is none, to this machine."""

from collections.abc import Sequence
from typing import Any

import submitit
from submitit.helpers import as_completed
from tqdm import tqdm

from ablations.runner.machine import Machine
from ablations.runner.runs import WORK
from ablations.runner.scheduler import Batch
from ablations.runner.side_by_side import Crew, train_group
from ablations.spec import SpecError

ASKED_EVERY = 2.0
"""Seconds; submitit's own watcher asks SLURM less often."""


class Cluster(Crew):
    """Trains runs as jobs, one a run, or one for runs that share what they need; they end with the command.

    `parameters` are of submitit's `AutoExecutor`, and `cluster` names one of its executors. Raises SpecError for others.
    """

    how = "as jobs of submitit"

    def __init__(self, machine: Machine, parameters: Sequence[tuple[str, str]]) -> None:
        super().__init__(machine)
        typed: dict[str, Any] = {name: int(v) if v.isdecimal() else v for name, v in parameters}
        try:
            self.executor = submitit.AutoExecutor((WORK / "submitit").resolve(), typed.pop("cluster", None))
            self.executor.update_parameters(**({"name": "ablations"} | typed))
        except (ValueError, NameError, TypeError, AssertionError, RuntimeError) as error:
            raise SpecError(f"submitit does not take these parameters: {' '.join(str(error).split())}") from error

    @property
    def alone(self) -> bool:
        """Never: this process trains nothing."""
        return False

    def _together(self, parts: Sequence[Batch]) -> None:
        jobs = {self.executor.submit(train_group, part, self.machine): part for part in parts}
        number = sum(len(part.runs) for part in parts)
        try:
            with tqdm(total=number, unit="run", dynamic_ncols=True, desc=f"{len(jobs)} jobs") as bar:
                for job in as_completed(list(jobs), poll_frequency=ASKED_EVERY):
                    self._tell(jobs[job], job, bar)
                    bar.update(len(jobs[job].runs))
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel(check=False)

    def _tell(self, part: Batch, job: "submitit.Job[Any]", bar: tqdm) -> None:
        """What came of a job that has ended."""
        if error := job.exception():
            why = f"{str(error).splitlines()[0]}; {job.paths.stderr} is what it printed"
            self.note(part, [], why, bar)
        else:
            self.note(part, *job.result(), bar)
