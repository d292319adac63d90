"""One training run: a row at a scale with a seed, from nothing or from its last finished epoch, to its record.

What the run needs is there: `scheduler.py` has trained it.
"""

import io
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from ablations.records.provenance import commit, hardware, versions
from ablations.records.record import Record
from ablations.runner.machine import Machine
from ablations.runner.processes import Agreed
from ablations.runner.runs import ARRAYS, Run, Transfer
from ablations.runner.staleness import defined_by
from replk_lightning.atomic import write_atomically
from replk_lightning.data import ImageData
from replk_lightning.distributed import wait_for_all
from replk_lightning.models.weights import load_weights
from replk_lightning.tasks.base import NonFiniteLossError, Task
from replk_lightning.tasks.segment import SegmentTask
from replk_lightning.trainer.checkpoint_io import serialized, why_not_resume, why_unreadable
from replk_lightning.trainer.fastest_layout import FastestLayout
from replk_lightning.trainer.loggers import opened
from replk_lightning.trainer.resume import ExactResume, TrainingClock

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # small sets load in this process on purpose
    ".*number of training batches.*is smaller than the logging interval.*",
    ".*exists and is not empty.*",  # the folder of a run that goes on
    ".*Grad strides do not match bucket view strides.*",  # torch lays 1×1 kernels' gradients out as it likes
    ".*isinstance.treespec, LeafSpec.*",  # between Lightning and torch
)


TRAINED = "trained"
"""Entry of kept weights: the model, recipe and labels that they are of."""


class EpochTick(Callback):
    """Moves the bar of the whole job by one an epoch, epochs of an interrupted part included."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.start = bar.n

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epochs that a resumed run has behind it."""
        self.bar.update(self.start + trainer.current_epoch - self.bar.n)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One more."""
        self.bar.update(1)


def train(run: Run, machine: Machine, bar: tqdm, callbacks: Sequence[Callback] = ()) -> Record:
    """Train and validate one run, with `callbacks` besides its own; a NaN loss gives a record of status `failed`.

    The same seed, code and machine give the same weights, whether or not the run was interrupted, and whatever loggers
    there are.
    """
    with opened(machine.loggers, run.logs, run.title) as loggers:
        return _train(run, machine, bar, callbacks, loggers)


def _train(run: Run, machine: Machine, bar: tqdm, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> Record:
    data = run.make_data()
    training = run.make_training_data(data)
    L.seed_everything(run.seed, workers=True, verbose=False)
    task = run.make_task(data)
    clock, last = TrainingClock(), run.folder / "last.ckpt"
    own = [Agreed(run.record_name, last), ExactResume(), FastestLayout(), clock, *_callbacks(run, bar)]
    trainer = L.Trainer(
        **run.recipe.length,
        callbacks=[*own, *callbacks],
        default_root_dir=run.folder,  # where Lightning looks for a requeued SLURM job's checkpoint: no other run's
        logger=[CSVLogger(run.folder, name="", version="log"), *loggers],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=not bar.disable,  # several runs at a time have one bar between them
        **machine.trainer_options(),
    )
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            metrics = _fit(run, trainer, task, training)
        except NonFiniteLossError as failure:
            return failed(run, data, str(failure), _hardware(trainer), **clock.summary())
    if run.is_needed:
        keep_weights(run, task)
        wait_for_all()  # other processes start from them at once
    if run.ablation.measure and not isinstance(run, Transfer):
        measured = run.ablation.measure(task.model.to(trainer.strategy.root_device), data)
        metrics |= {name: round(value, 4) for name, value in measured.metrics.items()}
        keep_arrays(run, measured.arrays)
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}  # a table reckons with the others
    return record_of(run, data, _hardware(trainer), **clock.summary(), status="done", metrics=finite)


def failed(run: Run, data: ImageData, reason: str, hardware: str | None, **measured: Any) -> Record:
    """The record of `run` where it gave nothing."""
    return record_of(run, data, hardware, status="failed", reason=reason, metrics={}, **measured)


def record_of(run: Run, data: ImageData, hardware: str | None, **measured: Any) -> Record:
    """The record of `run` on `data`; `measured` holds what running it gave."""
    before = run.pretraining if isinstance(run, Transfer) else None
    record = Record(
        ablation=run.ablation.name,
        row=run.row.key,
        kind=run.kind,
        scale=run.scale.name,
        data=run.data_name,
        data_fingerprint=data.fingerprint,
        seed=run.seed,
        model=run.row.model,
        options=run.scale.options_for(run.row),
        recipe=asdict(run.recipe),
        supervision=run.supervision,
        pretraining=asdict(before.recipe) if before else None,
        hardware=hardware,
        versions=versions(),
        commit=commit(),
        **measured,
    )
    return replace(record, model_fingerprint=defined_by(record))


def _hardware(trainer: L.Trainer) -> str:
    return hardware(trainer.strategy.root_device.type, trainer.world_size)


def _fit(run: Run, trainer: L.Trainer, task: Task, data: ImageData) -> dict[str, float]:
    """Train from the run's checkpoint if it has one, and return what the net is measured by in the end."""
    path, ablation = _checkpoint(run, task), run.ablation
    try:
        if run.recipe.trains:
            trainer.fit(task, data, ckpt_path=path, weights_only=True)
        elif run.start:
            load_weights(task.model, run.start)
        if not any(
            name.startswith("val_") for name in trainer.callback_metrics
        ):  # untrained, or killed between its last epoch and its record
            trainer.validate(task, data, ckpt_path=path, weights_only=True, verbose=False)
        metrics = _logged(trainer, "val_")
        if run.kind == "transfer" and not ablation.keys("transfer") <= set(metrics):
            trainer.test(task, data, verbose=False)  # the evaluation that takes long
            metrics |= _logged(trainer, "test_")
        if ablation.measure_transfer and isinstance(task, SegmentTask):
            measured = ablation.measure_transfer(trainer, task, data)
            metrics |= {name: round(value, 4) for name, value in measured.items()}
    except SystemExit as interrupted:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from interrupted
    return metrics


def _checkpoint(run: Run, task: Task) -> str | None:
    """Path of the checkpoint to go on from; None, with a warning if there is one that will not do, to start over."""
    last = run.folder / "last.ckpt"
    if not last.exists():
        return None
    reason = why_not_resume(last, task)
    if reason is None:
        return str(last)
    warnings.warn(f"{last} is ignored, {reason}: row {run.row.key!r}, seed {run.seed}, starts over", stacklevel=2)
    return None


def _logged(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): round(float(value), 4) for name, value in logged.items()}


@rank_zero_only
def keep_arrays(run: Run, arrays: dict[str, np.ndarray]) -> None:
    """Write what the figure needs into the run's folder, from where it joins the record."""
    if arrays:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type] # none is named allow_pickle
        write_atomically(run.folder / ARRAYS, content.getvalue())


def has_weights(run: Run) -> bool:
    """Whether what `run` trains is there, whole and trained as it would be now; warns of weights that will not do."""
    if not run.weights.exists():
        return False
    reason = why_unreadable(run.weights)
    if reason is None:
        content = torch.load(run.weights, map_location="cpu", weights_only=True, mmap=True)
        reason = None if content.get(TRAINED) == _trained(run) else "it is another experiment's"
    if reason:
        warnings.warn(f"{run.weights} is ignored, {reason}: row {run.row.key!r} is trained again", stacklevel=2)
    return reason is None


@rank_zero_only
def keep_weights(run: Run, task: Task) -> None:
    """Write what `run` trained for the runs that need it, and how it was trained, whole or not at all."""
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), TRAINED: _trained(run)}
    write_atomically(run.weights, serialized(content))


def _trained(run: Run) -> dict[str, Any]:
    options = run.scale.options_for(run.row)
    return {"model": run.row.model, "options": options, "recipe": asdict(run.recipe), "supervision": run.supervision}


def forget(run: Run) -> None:
    """Delete the checkpoint of a run that has its record."""
    shutil.rmtree(run.folder, ignore_errors=True)


def _callbacks(run: Run, bar: tqdm) -> list[Callback]:
    callbacks: list[Callback] = [
        EpochTick(bar),
        # one file, replaced atomically at every epoch's end, after validation
        ModelCheckpoint(
            run.folder, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
        ),
    ]
    if not bar.disable:
        callbacks.append(TQDMProgressBar(process_position=1))
    if run.recipe.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=run.recipe.ema))
    return callbacks
