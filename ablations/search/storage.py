"""Where a study's trials are stored, which study is a sweep's, and how its points are chosen."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ablations.search.objectives import Sweep, finished
from ablations.spec import SpecError

GRACE = 3
"""Intervals without a beat after which a worker counts as dead."""

RETRIES = 3
"""How often a trial is taken up again whose workers die: it may be what kills them."""

ATTEMPTS = 5

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
    with experiments():
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
    with experiments():
        return RetryHeartbeatStaleTrialCallback(max_retry=most, inherit_intermediate_values=True)


@contextmanager
def experiments() -> Iterator[None]:
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
    with experiments():
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
