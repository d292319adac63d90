"""What a worker of a study does until all trials are done.

Any number of workers share a study through its storage. A worker beats for the trial it is at; where no beat came for
three intervals, the trial counts as failed and another worker takes it up again.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import optuna
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from ablations.search.evaluate import GaveWayError, Trial, TrialFailedError
from ablations.search.objectives import OBJECTIVES, Sweep, finished
from ablations.search.storage import GRACE, experiments, retry
from ablations.spec import SpecError

BARREN = 50
"""Trials in a row without any result after which a worker gives up."""


@dataclass
class Worker:
    """Runs trials of a study until `trials` of it are complete, by whichever workers, or `timeout` seconds are over.

    Pruned, rejected and failed trials do not count, nor does a model that is drawn again, which is not trained again.
    """

    study: optuna.Study
    sweep: Sweep
    trials: int
    timeout: float | None = None
    heartbeat: int = 30
    quiet: bool = False

    def work(self) -> None:
        """Raises SpecError where no trial gives a result, KeyboardInterrupt with the trial put back into the queue."""
        trial = Trial(self.sweep, self.study.study_name, self.trials, self.quiet)
        since, barren = time.monotonic(), 0
        while True:
            self._bury()
            all_trials = self.study.get_trials(deepcopy=False)
            done = len(finished(all_trials))
            late = self.timeout is not None and time.monotonic() - since >= self.timeout
            if done >= self.trials or late:
                return
            running = sum(t.state == TrialState.RUNNING for t in all_trials)
            if done + running + self._returning(all_trials) >= self.trials:
                self._wait()  # for the other workers' last trials, should one of them die or fail
                continue
            last = self._one(trial)
            barren = 0 if last is None or not _barren(last) else barren + 1
            if barren == BARREN:
                reason = last.user_attrs.get("reason", "models that were trained already") if last else ""
                raise SpecError(f"the last {BARREN} trials gave no new result; the last of them: {reason}.")

    def _one(self, run: Trial) -> FrozenTrial | None:
        """Run a trial; None where it is left to another worker, which may have taken this one for dead."""
        taken: list[int] = []
        gave_way: list[GaveWayError] = []

        def objective(trial: optuna.Trial) -> list[float]:
            taken.append(trial.number)
            try:
                return run(trial)
            except GaveWayError as reason:
                gave_way.append(reason)
                raise

        try:
            self.study.optimize(objective, n_trials=1, catch=(TrialFailedError,))
        except KeyboardInterrupt:
            self._requeue(taken)
            raise
        except ValueError as error:
            if not str(error).startswith("Cannot tell a FAIL trial"):
                raise
            return None
        if gave_way:
            if gave_way[0].requeue:
                self._requeue(taken)
            self._wait()
            return None
        trial = self.study.trials[taken[0]]
        print(describe(trial, self.sweep), flush=True)
        return trial

    def _requeue(self, numbers: list[int]) -> None:
        """Put trials that were given up back into the queue, where their points are known."""
        for number in numbers:
            trial = self.study.trials[number]
            if trial.state == TrialState.FAIL and (trial.params or "fixed_params" in trial.system_attrs):
                retry(None)(self.study, trial)

    def _bury(self) -> None:
        """Fail trials whose workers are dead; each is queued again by whoever fails it."""
        with experiments():
            fail_stale_trials(self.study)
        long_ago = datetime.now() - timedelta(seconds=GRACE * self.heartbeat)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # killed before its first beat: none will ever be missed
            unclaimed = trial.user_attrs.get("claimed") != trial.number
            if unclaimed and trial.datetime_start and trial.datetime_start < long_ago:
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except ValueError:
                    continue  # another worker was faster
                self._requeue([trial.number])

    def _returning(self, trials: Sequence[FrozenTrial]) -> int:
        """Trials that another worker failed a moment ago and has not put back into the queue yet."""
        back = {number for t in trials for number in t.system_attrs.get("retry_history", ())}
        moment = datetime.now() - timedelta(seconds=self._pause)
        return sum(
            t.state == TrialState.FAIL and t.number not in back and "reason" not in t.user_attrs
            for t in trials
            if t.datetime_complete and t.datetime_complete > moment
        )

    @property
    def _pause(self) -> float:
        """The longest wait between two looks at the study, in seconds."""
        return min(self.heartbeat, 5)

    def _wait(self) -> None:
        # training seeds the global generators, and workers that wait in step would collide again
        time.sleep(random.SystemRandom().uniform(0.2, 1.0) * self._pause)


def _barren(trial: FrozenTrial) -> bool:
    """Whether a trial cost no training and gave nothing."""
    if trial.state == TrialState.COMPLETE:
        return "same_as" in trial.user_attrs
    return not trial.intermediate_values


def describe(trial: FrozenTrial, sweep: Sweep) -> str:
    """A line about a finished trial."""
    attributes = trial.user_attrs
    point = " ".join(f"{name}={value}" for name, value in attributes.get("point", {}).items())
    if trial.state == TrialState.COMPLETE:
        said = ", ".join(f"{OBJECTIVES[name].label} {attributes[name]:.4g}" for name in sweep.objectives)
        said += f", as trial {attributes['same_as']}" if "same_as" in attributes else ""
    else:
        said = f"{trial.state.name.lower()}: {attributes.get('reason', 'behind the others at this epoch')}"
    return f"trial {trial.number}: {point}: {said}"
