"""What several ablations measure: of the nets that they train, and in which forms they time nets."""

from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from ablations.spec import Metric

if TYPE_CHECKING:
    from lightning import Trainer

    from replk_lightning.data import ImageData
    from replk_lightning.tasks.segment import SegmentTask

EDGES = (0, 2, 4, 8, 16)
"""Lower edges of the bands of distance from a pixel to the nearest outline, in pixels of the labels."""

BANDS = {low: f"{low}–{high}" if high else f"≥ {low}" for low, high in zip_longest(EDGES, EDGES[1:])}
"""What the band above an edge is called; its upper edge is the next band's."""

MIOU_OF = {
    edge: Metric(f"miou_{edge}", f"mIoU {band} px from an outline (%)", "transfer") for edge, band in BANDS.items()
}

FORMS = (
    ("", "", "fp32", False),
    ("_bf16", " in bf16", "bf16", False),
    ("_compiled", " by torch.compile", "fp32", True),
    ("_bf16_compiled", " in bf16 by torch.compile", "bf16", True),
)
"""How nets are timed: what a metric's key and label end in, the precision, and whether torch.compile's code runs."""


def in_all_forms(metric: Metric) -> tuple[Metric, ...]:
    """A metric of timings in each of FORMS, all but the first on GPUs only."""
    return tuple(
        replace(metric, key=metric.key + key, label=metric.label + words, on_gpus=bool(key)) for key, words, *_ in FORMS
    )


def forms_here(metric: Metric) -> dict[str, dict[str, Any]]:
    """Keys of `in_all_forms` that the device at hand measures, each with the arguments `precision` and `compiled`."""
    forms = FORMS if torch.cuda.is_available() else FORMS[:1]
    return {metric.key + key: {"precision": name, "compiled": compiled} for key, _, name, compiled in forms}


def by_distance(trainer: "Trainer", task: "SegmentTask", data: "ImageData") -> dict[str, float]:
    """mIoU by the distance to the nearest outline, `miou_0` to `miou_16`, and each band's `share_…` of the pixels."""
    from replk_lightning.measure.distance import miou_by_distance  # imports Lightning, which rendering does without

    return miou_by_distance(trainer, task, data, EDGES)
