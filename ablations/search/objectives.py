"""What a sweep optimizes, and what makes its trials comparable."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from ablations.records.provenance import hardware
from ablations.runner.machine import Machine
from ablations.runner.runs import Run, transfer_of
from ablations.search.space import Point, Space
from ablations.spec import LATENCY, MACS, MIOU, PARAMETERS, TOP1, Ablation, Row, Scale, SpecError
from native import timing
from replk_lightning.measure.latency import throughput

OBJECTIVES = {
    "accuracy": TOP1,
    "miou": replace(MIOU, label="mIoU (%)"),
    "latency": LATENCY,
    "macs": replace(MACS, digits=4),
    "parameters": replace(PARAMETERS, digits=4),
}
"""What a sweep may optimize, by its names in flags and trials. Small nets differ in the last digits."""

LATENCY_BATCH = 16


@dataclass(frozen=True)
class Sweep:
    """What makes the trials of a study comparable, and the machine that this worker trains on.

    `max_parameters` and `max_macs` are the largest model that is trained: parameters, and multiply-adds an image.
    """

    space: Space
    scale: Scale
    data: str
    objectives: tuple[str, ...]
    machine: Machine
    transfer_data: str | None = None
    max_parameters: float | None = None
    max_macs: float | None = None
    seed: int = 0

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """For optuna."""
        return ["maximize" if OBJECTIVES[name].more_is_better else "minimize" for name in self.objectives]

    @property
    def trains(self) -> bool:
        """Whether any objective needs a trained net."""
        return any(OBJECTIVES[name].trained for name in self.objectives)

    @property
    def hardware(self) -> str:
        """Name of the device that latency is measured on."""
        return hardware(self.machine.device.type)

    @property
    def name(self) -> str:
        """The study's: space, scale, data, and a hash of everything else that makes trials incomparable."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return f"{self.prefix}-{digest[:8]}"

    @property
    def prefix(self) -> str:
        """The study's name without its hash."""
        words = (self.space.name, self.scale.name, self.run(self.space.start).data_name)
        return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", word).strip("-") for word in words)

    def identity(self) -> dict[str, Any]:
        """Everything but space, scale and data by name that makes trials incomparable. Raises DataError, SpecError."""
        runs = self.runs(self.space.start)
        found: dict[str, Any] = {
            "space": self.space.identity(),
            "recipe": [asdict(run.recipe) for run in runs],
            "model options": self.scale.options_for(runs[0].row),
            "objectives": list(self.objectives),
            "budget": [self.max_parameters, self.max_macs],
            "data": [run.make_data().fingerprint for run in runs] if self.trains else [],
            "seed": self.seed,
            "hardware": self.hardware if "latency" in self.objectives else None,
        }
        told: dict[str, Any] = json.loads(json.dumps(found))
        return told

    def ablation(self, name: str = "") -> Ablation:
        """The space's ablation with nothing but what the objectives need."""
        dense = "miou" in self.objectives
        if dense and self.space.ablation.transfer is None:
            raise SpecError(f"space {self.space.name!r} is not carried over to segmentation, so it has no mIoU.")
        return replace(
            self.space.ablation,
            name=name,
            metrics=(TOP1, MIOU) if dense else (TOP1,),
            transfer=self.space.ablation.transfer if dense else None,
            measure=None,
            draw=None,
            timing=None,
            claims=[],
        )

    def run(self, point: Point, study: str = "") -> Run:
        """The training run of the classifier at `point`; its files are told from others' by its options."""
        options = self.space.options_at(point)
        words = "-".join(re.sub(r"[^A-Za-z0-9]+", "_", str(value)) for value in point.values())
        key = f"{words[:60]}.{hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:6]}"
        row = Row(key, self.space.model, **options)
        return Run(self.ablation(f"sweeps/{study}"), row, self.scale, self.data, self.seed)

    def runs(self, point: Point, study: str = "") -> list[Run]:
        """Every training run at `point`: the classifier's and, where mIoU is wanted, the segmenter's after it."""
        first = self.run(point, study)
        transfer = transfer_of(first, self.transfer_data, None)
        return [first, transfer] if transfer else [first]

    def job(self, point: Point, classes: int) -> tuple[str, int, dict[str, Any]]:
        """The net at `point` for `replk_lightning.measure.latency.throughput`, at the recipe's resolution."""
        run = self.run(point)
        options = {**self.scale.options_for(run.row), "num_classes": classes}
        return self.space.model, run.recipe.resolution, options


def values_of(metrics: Mapping[str, Any], objectives: Sequence[str]) -> list[float]:
    """The objectives' values among a trial's attributes, in their order."""
    return [float(metrics[name]) for name in objectives]


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, each model once."""
    return [t for t in trials if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs]


def milliseconds(sweep: Sweep, points: Mapping[str, Point], classes: int, rounds: int) -> dict[str, float]:
    """Median milliseconds an image of each net, deployed, the nets taking turns batch by batch."""
    jobs = {name: sweep.job(point, classes) for name, point in points.items()}
    clock = time.thread_time if counts_cpu_time(sweep) else time.perf_counter
    return {n: 1000 / rate for n, rate in throughput(jobs, LATENCY_BATCH, rounds, sweep.machine.device, clock).items()}


def counts_cpu_time(sweep: Sweep) -> bool:
    """Whether latency is the CPU time of one thread: the same on an idle machine, and not stretched on a busy one."""
    return sweep.machine.device.type == "cpu" and timing.counts_cpu_time()
