"""A study: where its trials are stored, how its points are chosen, and what a worker does until all are done.

Any number of workers share a study through its storage. A worker beats for the trial it is at; where no beat came for
three intervals, the trial counts as failed and another worker takes it up again.
"""

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ablations.search.evaluate import OBJECTIVES, GaveWayError, Sweep, Trial, TrialFailedError, finished
from ablations.spec import SpecError

GRACE = 3
"""Intervals without a beat after which a worker counts as dead."""

RETRIES = 3
"""How often a trial is taken up again whose workers die: it may be what kills them."""

ATTEMPTS = 5

BARREN = 50
"""Trials in a row without any result after which a worker gives up."""

SQLITE = "sqlite:///"


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """The storage at an URL of SQLAlchemy's, with its tables; raises SpecError."""
    if url.startswith(SQLITE):
        try:
            Path(url.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"the folder of {url} cannot be made ({error.strerror}); name another --storage.") from None
    for attempt in range(ATTEMPTS):
        try:
            storage = _connect(url, heartbeat)
        except ImportError as error:
            missing = error.__cause__ or error
            raise SpecError(f"the driver of {url.partition(':')[0]} is not installed ({missing}).") from error
        except (ArgumentError, NoSuchModuleError, DBAPIError, RuntimeError) as error:
            if isinstance(error, DBAPIError) and attempt + 1 < ATTEMPTS:
                time.sleep(1)  # another worker may be making the tables
                continue
            reason = str(error.__cause__ or error).splitlines()[0]
            raise SpecError(f"the storage {_without_password(url)} cannot be opened: {reason}.") from error
        if url.startswith(SQLITE):
            _take_turns(storage)
        return storage
    raise AssertionError


def _connect(url: str, heartbeat: int) -> RDBStorage:
    connect: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith(SQLITE) else {}
    with _experiments():
        return RDBStorage(
            url,
            engine_kwargs=connect,
            heartbeat_interval=heartbeat,
            grace_period=GRACE * heartbeat,
            heartbeat_stale_trial_callback=retry(RETRIES),
        )


def _take_turns(storage: RDBStorage) -> None:
    """Lock an SQLite file from a transaction's start: else two workers take the same trial from the queue.

    Python's driver opens a transaction before the first write only, and optuna reads first.
    """

    @event.listens_for(storage.engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # connections opened before


def retry(most: int | None) -> RetryHeartbeatStaleTrialCallback:
    """What puts a trial back into the queue, `most` times."""
    with _experiments():
        return RetryHeartbeatStaleTrialCallback(max_retry=most, inherit_intermediate_values=True)


@contextmanager
def _experiments() -> Iterator[None]:
    """Optuna calls heartbeats, retries and metrics' names experimental, as it has for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def open_study(sweep: Sweep, storage: RDBStorage, trials: int) -> optuna.Study:
    """The sweep's study, made if there is none; a new one beside others of its space says what differs."""
    known = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
    name, identity = sweep.name, sweep.identity()
    beside = [s for n, s in known.items() if n != name and n.startswith(f"{sweep.prefix}-")]
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=sweep.directions,
        load_if_exists=True,
        sampler=_sampler(sweep, trials),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
    )
    if name in known:
        print(f"study {name}, {len(finished(study.get_trials(deepcopy=False)))} of {trials} trials complete")
    elif beside:
        last = beside[-1]
        theirs = last.user_attrs.get("identity", {})
        changed = [key for key in identity if identity[key] != theirs.get(key)]
        print(f"new study {name}: it differs from {last.study_name} in {', '.join(changed)}")
    else:
        print(f"new study {name}")
    study.set_user_attr("identity", identity)
    with _experiments():
        study.set_metric_names(list(sweep.objectives))
    return study


def _sampler(sweep: Sweep, trials: int) -> optuna.samplers.BaseSampler:
    if len(sweep.objectives) == 1:
        return optuna.samplers.TPESampler()
    # optuna's 50 would make a short sweep one generation, which is random
    return optuna.samplers.NSGAIISampler(population_size=min(50, max(4, trials // 4)))


def enqueue(study: optuna.Study, sweep: Sweep) -> None:
    """Queue the points to be tried first that no trial is at, was at or waits for."""
    held = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL or "reason" in t.user_attrs]
    points = [t.user_attrs.get("point") or t.system_attrs.get("fixed_params") or t.params for t in held]
    for point in sweep.space.first:
        if dict(point) not in points:
            study.enqueue_trial(dict(point))


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

    def work(self) -> None:
        """Raises SpecError where no trial gives a result, KeyboardInterrupt with the trial put back into the queue."""
        trial = Trial(self.sweep, self.study.study_name, self.trials)
        since, barren = time.monotonic(), 0
        while True:
            self._bury()
            all_trials = self.study.get_trials(deepcopy=False)
            done = len(finished(all_trials))
            late = self.timeout is not None and time.monotonic() - since >= self.timeout
            if done >= self.trials or late:
                return
            if done + sum(t.state == TrialState.RUNNING for t in all_trials) >= self.trials:
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
        with _experiments():
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

    def _wait(self) -> None:
        # training seeds the global generators, and workers that wait in step would collide again
        time.sleep(random.SystemRandom().uniform(0.2, 1.0) * min(self.heartbeat, 5))


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
        said = ", ".join(f"{name} {attributes[name]:.4g} ({OBJECTIVES[name].unit})" for name in sweep.objectives)
        said += f", as trial {attributes['same_as']}" if "same_as" in attributes else ""
    else:
        said = f"{trial.state.name.lower()}: {attributes.get('reason', 'behind the others at this epoch')}"
    return f"trial {trial.number}: {point}: {said}"
