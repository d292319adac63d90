"""Accuracy over distance: what nets of small and of large kernels make of pixels far from an outline.

A test of the paper's explanation: if large kernels are better because they use what is far away (Sec. 5.1, Remark 4),
they should gain most where it is far to what tells a pixel's class. Rows of Tables 3 and 5 (`guideline3` and `table5`
train and measure them): mIoU of the pixels whose nearest pixel of another class is 0 to 2, 2 to 4, 4 to 8, 8 to 16 or
16 and more pixels away, over the classes that there are in the band. A band is compared between nets only, not with
another band: near outlines all nets err, as labels are finer than their maps.

Pixels of the ground count like those of objects. Where figure and ground may swap their brightness, a pixel deep
inside and one far outside look alike, and only the outline tells which is which. Over objects alone a net that calls
no doubtful pixel ground would seem perfect, over the ground alone one that calls them all so.

Cost: `python -m ablations.run distance` trains what `guideline3` and `table5` would, and nothing else.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablations.measures import BANDS, EDGES, MIOU_OF
from ablations.report.plots import lines
from ablations.report.results import Results, Setting
from ablations.report.verdicts import partners
from ablations.spec import Drawing, Number, Row, ablation
from ablations.tables.guideline3 import guideline3
from ablations.tables.table5 import table5

NETS = {
    "MobileNetV2": guideline3.select(["k3", "k9-reparam", "k13-reparam"]),
    "RepLKNet": table5.rows,
}


def draw(results: Results, setting: Setting, runs: Path) -> Drawing | None:
    """A panel a family and set, in it a line a kernel size over the bands: means, and their spread over seeds."""
    numbers: list[list[Any]] = [["row", "data", "seed", "from", "to", "share (%)", "mIoU (%)"]]
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for its in partners(results, setting):
        for row in results.ablation.rows:
            samples = [results.samples(its, row, metric) for metric in MIOU_OF.values()]
            if any(samples):
                family, _, label = row.label.partition(" ")
                panels.setdefault(f"{family} ({its.data})", {})[label] = samples
        for (key, seed), record in results.by_setting[its].items():
            for low, high in zip(EDGES, (*EDGES[1:], ""), strict=True):
                if MIOU_OF[low].key in record.metrics:
                    found = [record.metrics[name] for name in (f"share_{low}", MIOU_OF[low].key)]
                    numbers.append([key, its.data, seed, low, high, *found])
    if not panels:
        return None
    title = f"Accuracy over distance, mean and deviation over seeds (scale {setting.scale})"
    return Drawing(lines(panels, list(BANDS.values()), title, "pixels to the nearest outline", "mIoU (%)"), numbers)


@ablation(recipe=table5.recipe, metrics=tuple(MIOU_OF.values()), draw=draw, records_of=(guideline3, table5))
def distance() -> Iterator[Row]:
    """A net a kernel size, of both families."""
    for family, rows in NETS.items():
        for row in rows:
            yield Row(row.key, row.model, label=f"{family} {row.label}", **row.options)


Mious = dict[str, float]


def _lost(shallow: Mious, deep: Mious, row: str) -> float:
    """Points of mIoU from the band at the outlines to the deepest one; below zero where a net is better deep inside."""
    return shallow[row] - deep[row]


@distance.claim("away from outlines, MobileNetV2 loses less mIoU with 13×13 than with 3×3")
def mobilenet_loses_less(miou_0: Mious, miou_16: Mious) -> float:
    """What Sec. 5.1's explanation lets expect; the paper does not measure it."""
    return _lost(miou_0, miou_16, "k3") - _lost(miou_0, miou_16, "k13-reparam")


@distance.claim("16 pixels and more from an outline, MobileNetV2 is better with 13×13 than with 3×3")
def mobilenet_is_better_far_away(miou_16: Mious) -> float:
    """Likewise."""
    return miou_16["k13-reparam"] - miou_16["k3"]


@distance.claim(
    "away from outlines, RepLKNet-31 loses less mIoU than RepLKNet-3",
    Number(
        "mIoU that RepLKNet-31 leads by, 16 pixels and more from an outline (points)",
        lambda miou_16: miou_16["replknet31"] - miou_16["replknet3"],
    ),
)
def replknet_loses_less(miou_0: Mious, miou_16: Mious) -> float:
    """Likewise."""
    return _lost(miou_0, miou_16, "replknet3") - _lost(miou_0, miou_16, "replknet31")


@distance.claim("16 pixels and more from an outline, RepLKNet-31 is better than RepLKNet-3")
def replknet_is_better_far_away(miou_16: Mious) -> float:
    """Likewise."""
    return miou_16["replknet31"] - miou_16["replknet3"]
