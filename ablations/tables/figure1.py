"""The effective receptive fields of deep and of large-kernel nets.

The contribution scores of Table 10's nets (`table10` trains and measures them), each divided by its largest: the more
widely the dark area is spread, the larger the field. Above, the trained nets; below, the same nets as they were
initialised, which is not what the paper shows (timm starts a ResNet's residual branches at zero). `figure1.csv` holds
the share of the scores inside every centred square.

Cost: `python -m ablations.run figure1` trains what `table10` would, and nothing else.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ablations.records.record import arrays_path
from ablations.report.plots import Panel, heat_maps
from ablations.report.results import Results, Setting
from ablations.spec import Drawing, Number, Row, ablation
from ablations.tables.table10 import SIDE, THRESHOLDS, Ratios, table10

SHOWN_SHARES = 64


def draw(results: Results, setting: Setting, runs: Path) -> Drawing:
    """One heat map a net of the first seed that it has."""
    panels = []
    numbers: list[list[str | int | float]] = [["row", "side", "share"]]
    for row in results.ablation.rows:
        record = results.first(setting, row)
        if record is None:
            continue
        with np.load(arrays_path(record, runs)) as arrays:
            field, shares = arrays["field"].astype(float), arrays["shares"]
        title = textwrap.fill(row.label, 24)
        panels.append(Panel(title, field / field.max(), f"half in {record.metrics['r50']:.2g} %"))
        step = max(1, len(shares) // SHOWN_SHARES)
        numbers += [[row.key, 2 * i + 1, round(float(shares[i]), 5)] for i in range(0, len(shares), step)]
    title = f"Effective receptive fields at {SIDE}² ({setting.data}, scale {setting.scale})"
    figure = heat_maps(panels, 4, title, "contribution, largest = 1")
    return Drawing(figure, numbers)


@ablation(figure=1, recipe=table10.recipe, metrics=table10.metrics[: len(THRESHOLDS)], draw=draw, records_of=(table10,))
def figure1() -> Iterator[Row]:
    """Table 10's rows."""
    yield from table10.rows


@figure1.claim(
    "from ResNet-101 to ResNet-152 the field grows less than from ResNet-101 to RepLKNet-13",
    Number("RepLKNet-13's field over ResNet-152's (times, t = 50 %)", lambda r50: r50["replknet13"] / r50["resnet152"]),
)
def kernels_enlarge_fields_more_than_layers(r50: Ratios) -> float:
    """Figure 1: "More layers help little in enlarging ERFs"."""
    return (r50["replknet13"] - r50["resnet101"]) - (r50["resnet152"] - r50["resnet101"])
