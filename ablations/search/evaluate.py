"""One trial of a sweep: a model of the space as a row of its ablation, rejected, or trained and measured."""

import json
import os
import socket
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from optuna.trial import FrozenTrial, TrialState
from optuna_integration import PyTorchLightningPruningCallback
from tqdm import tqdm

from ablations.records.provenance import commit, versions
from ablations.records.record import Record
from ablations.runner.runs import Run
from ablations.runner.scheduler import Scheduler
from ablations.runner.train import forget
from ablations.search.objectives import OBJECTIVES, Sweep, finished, milliseconds, values_of
from ablations.search.space import Point
from replk_lightning.measure.complexity import complexity
from replk_lightning.models import ModelError

LATENCY_ROUNDS = 15


class _Pruning(PyTorchLightningPruningCallback):  # type: ignore[misc] # optuna-integration has no types
    """Reports validations in training, not those that measure the trained net."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One more value of the trial; raises TrialPruned where it is not worth going on."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_end(trainer, pl_module)


class TrialFailedError(Exception):
    """A trial gave no result; the message says why. It does not end the sweep."""


class GaveWayError(TrialFailedError):
    """A trial is left to other workers; with `requeue`, its point is to be tried should theirs fail."""

    def __init__(self, reason: str, requeue: bool) -> None:
        super().__init__(reason)
        self.requeue = requeue


class Trial:
    """The objective function of a study: call it with an optuna trial."""

    def __init__(self, sweep: Sweep, study: str, wanted: int, quiet: bool = False) -> None:
        self.sweep, self.study, self.wanted, self.quiet = sweep, study, wanted, quiet
        run = sweep.run(sweep.space.start)
        self.classes = run.make_data().num_classes

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Values of the objectives; raises TrialPruned for a model beyond the budget, or TrialFailedError."""
        trial.set_user_attr("claimed", trial.number)
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        self._require_vacancy(trial)
        point = {name: _suggest(trial, name, values) for name, values in self.sweep.space.choices.items()}
        runs = self.sweep.runs(point, self.study)
        note(trial, point=point, options=runs[0].row.options, seed=self.sweep.seed)
        note(trial, hardware=self.sweep.hardware, commit=commit(), versions=versions() | _optunas())
        twin = self._twin(trial, runs[0].row.options)
        if twin is not None:
            note(trial, **(twin.user_attrs | {"point": point, "same_as": twin.number}))
            return values_of(twin.user_attrs, self.sweep.objectives)
        try:
            self._require_budget(trial, runs[0])
            if self.sweep.trains:
                self._train(trial, runs)
            if "latency" in self.sweep.objectives:
                note(trial, latency=self._latency(trial, point))
        except ModelError as error:
            raise failed(trial, str(error)) from error
        except RuntimeError as error:  # out of memory, above all
            if isinstance(error, optuna.exceptions.UpdateFinishedTrialError):
                raise
            raise failed(trial, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        return values_of(trial.user_attrs, self.sweep.objectives)

    def _require_vacancy(self, trial: optuna.Trial) -> None:
        """Give way if the other workers' trials suffice: whoever claims last sees all the others' claims."""
        others = [t for t in trial.study.get_trials(deepcopy=False) if t.number != trial.number]
        busy = len(finished(others)) + sum(t.state == TrialState.RUNNING for t in others)
        if busy >= self.wanted:
            raise GaveWayError("other workers have taken up the trials that were missing", requeue=True)

    def _twin(self, trial: optuna.Trial, options: dict[str, Any]) -> FrozenTrial | None:
        """A finished trial of the same model; raises GaveWayError where one is being trained."""
        ours = json.loads(json.dumps(options))
        for other in trial.study.get_trials(deepcopy=False):
            if other.number == trial.number or other.user_attrs.get("options") != ours:
                continue
            if other.state == TrialState.COMPLETE and "same_as" not in other.user_attrs:
                return other
            if other.state == TrialState.RUNNING and other.number < trial.number:
                raise GaveWayError(f"trial {other.number} is the same model", requeue=False)
        return None

    def _require_budget(self, trial: optuna.Trial, run: Run) -> None:
        """Count the model; raises TrialPruned if it is too large."""
        side = run.recipe.resolution
        options = {**self.sweep.scale.options_for(run.row), "num_classes": self.classes}
        try:
            cost = complexity(run.row.model, (3, side, side), folded=True, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"no model {run.row.model!r} with {options}: {error}") from error
        note(trial, parameters=cost.parameters / 1e6, macs=cost.macs / 1e9)
        budgets = (
            ("parameters", cost.parameters, self.sweep.max_parameters),
            ("multiply-adds", cost.macs, self.sweep.max_macs),
        )
        for what, value, most in budgets:
            if most is not None and value > most:
                reason = f"{value:,} {what}, more than {most:,.0f}"
                trial.set_user_attr("reason", reason)
                raise optuna.TrialPruned(reason)

    def _bar(self, epochs: int) -> tqdm:
        return tqdm(total=epochs, unit="epoch", leave=False, disable=self.quiet)

    def _train(self, trial: optuna.Trial, runs: list[Run]) -> None:
        """Train what the objectives need; nothing is left of it but numbers, unless it is interrupted."""
        records: list[Record] = []

        def finish(run: Run, record: Record) -> None:
            if record.status == "failed":
                raise failed(trial, record.reason or "no reason is known")
            records.append(record)
            keys = {name: objective.key for name, objective in OBJECTIVES.items() if objective.trained}
            note(trial, **{name: record.metrics[key] for name, key in keys.items() if key in record.metrics})
            note(trial, seconds=round(sum(each.seconds or 0.0 for each in records), 1), hardware=record.hardware)
            note(trial, data=record.data, data_fingerprint=record.data_fingerprint)

        epochs = sum(run.recipe.epochs for run in runs)
        try:
            with warnings.catch_warnings(), self._bar(epochs) as bar:
                # a trial that goes on after its worker's death validates an epoch again
                warnings.filterwarnings("ignore", "The reported value is ignored because this `step`")
                bar.set_postfix_str(f"trial {trial.number}")
                callbacks = {runs[-1].record_name: self._pruning(trial)}
                Scheduler(self.sweep.machine, bar, finish, callbacks=callbacks).work(runs)
        except KeyboardInterrupt:
            raise  # the checkpoint stays, for whoever takes the trial up again
        except BaseException:
            _clean(runs)
            raise
        _clean(runs)

    def _pruning(self, trial: optuna.Trial) -> list[Callback]:
        """What ends a trial's last training early: where one objective is searched, and known after every epoch."""
        first, *others = (OBJECTIVES[name] for name in self.sweep.objectives)
        return [] if others or not first.trained else [_Pruning(trial, f"val_{first.key}")]

    def _latency(self, trial: optuna.Trial, point: Point) -> float:
        """Milliseconds an image, measured in turns with the space's first net, so that a busy machine slows both."""
        points = {"start": self.sweep.space.start, "this": point}
        measured = milliseconds(self.sweep, points, self.classes, LATENCY_ROUNDS)
        study = trial.study
        if "start_latency" not in study.user_attrs:
            study.set_user_attr("start_latency", measured["start"])
        start: float = study.user_attrs["start_latency"]
        return measured["this"] / measured["start"] * start


def note(trial: optuna.Trial, **attributes: Any) -> None:
    """Keep what is known about a trial with it."""
    for name, value in attributes.items():
        trial.set_user_attr(name, json.loads(json.dumps(value)))


def failed(trial: optuna.Trial, reason: str) -> TrialFailedError:
    """The exception to raise, its reason kept with the trial."""
    trial.set_user_attr("reason", reason)
    return TrialFailedError(reason)


def _suggest(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    if isinstance(values, range):
        return trial.suggest_int(name, values[0], values[-1], step=values.step)
    return trial.suggest_categorical(name, list(values))


def _optunas() -> dict[str, str]:
    return {"optuna": optuna.__version__}


def _clean(runs: list[Run]) -> None:
    for run in runs:
        forget(run)
    runs[0].weights.unlink(missing_ok=True)
