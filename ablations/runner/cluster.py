"""The same runs as jobs of a cluster: submitit hands them to SLURM or, where there is none, to this machine."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import submitit
from submitit.helpers import as_completed
from tqdm import tqdm

from ablations.runner.runs import WORK
from ablations.runner.scheduler import Batch, Outcome
from ablations.spec import SpecError

ASKED_EVERY = 2.0
"""Seconds; submitit asks SLURM less often."""


class Cluster:
    """Jobs, one for runs that share what they need; they end with the command.

    `parameters` are of submitit's `AutoExecutor`, `cluster` among them names one of its executors. Raises SpecError for
    what it does not take.
    """

    def __init__(self, parameters: Sequence[tuple[str, str]]) -> None:
        typed: dict[str, Any] = {name: int(v) if v.isdecimal() else v for name, v in parameters}
        try:
            self.executor = submitit.AutoExecutor((WORK / "submitit").resolve(), typed.pop("cluster", None))
            self.executor.update_parameters(**({"name": "ablations"} | typed))
        except (ValueError, NameError, TypeError, AssertionError, RuntimeError) as error:
            raise SpecError(f"submitit does not take these parameters: {' '.join(str(error).split())}") from error

    @property
    def how(self) -> str:
        """How runs are trained, for people."""
        return f"as jobs ({self.executor.cluster})"

    def work_on(
        self, parts: Sequence[Batch], work: Callable[[Batch], Outcome], bar: tqdm
    ) -> Generator[tuple[Batch, Outcome], None, None]:
        """Each part and what came of it, as its job ends."""
        jobs = {self.executor.submit(work, part): part for part in parts}
        try:
            for job in as_completed(list(jobs), poll_frequency=ASKED_EVERY):
                bar.update(sum(run.recipe.epochs for run in jobs[job].runs))
                yield jobs[job], _outcome(job)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel(check=False)


def _outcome(job: "submitit.Job[Outcome]") -> Outcome:
    if error := job.exception():
        return [], f"{str(error).splitlines()[0]}; what it printed is in {job.paths.stderr}"
    return job.result()
