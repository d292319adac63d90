"""What several ablations measure of the nets that they train."""

from itertools import zip_longest
from typing import TYPE_CHECKING

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


def by_distance(trainer: "Trainer", task: "SegmentTask", data: "ImageData") -> dict[str, float]:
    """mIoU by the distance to the nearest outline, `miou_0` to `miou_16`, and each band's `share_…` of the pixels."""
    from replk_lightning.measure.distance import miou_by_distance  # imports Lightning, which rendering does without

    return miou_by_distance(trainer, task, data, EDGES)
