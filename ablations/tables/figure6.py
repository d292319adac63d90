"""Kernel weights with and without re-parameterization: how much of a 13×13 kernel lies in its central 3×3.

The first 13×13 layer of stride 1 in MobileNetV2's last stage, batch norms fused, absolute values summed over the
channels and divided by the largest (Appendix C). With a 3×3 branch the kernel is shown before and after the branch is
added onto its middle. The paper prints no numbers; 5.3 % would lie in the middle of an even kernel. A random 3×3
branch has larger weights than a random 13×13 one, so its middle stands out before any training: it has a row here.

Cost: `python -m ablations.run figure6`, about 2.5 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from ablations.records.record import arrays_path
from ablations.report.plots import Panel, heat_maps
from ablations.report.results import Results, Setting
from ablations.spec import TOP1, Drawing, Measured, Metric, Number, Row, ablation
from replk_lightning.measure.kernel_pictures import central_share, fused_kernels, last_stage_layer, picture
from replk_lightning.models import MobileNetV2
from replk_lightning.recipes import mobilenetv2_100ep

if TYPE_CHECKING:
    from replk_lightning.data import ImageData

BEFORE = Metric("central_before", "central 3×3 of the 13×13 branch (%)", digits=1)
AFTER = Metric("central", "central 3×3 of the merged kernel (%)", digits=1)


def measure_kernel(net: nn.Module, data: "ImageData") -> Measured:
    """The two pictures of the layer's kernel, and the share of each in the middle."""
    assert isinstance(net, MobileNetV2)
    large, merged = (picture(weight.cpu()) for weight in fused_kernels(last_stage_layer(net)))
    metrics = {BEFORE.key: 100 * central_share(large), AFTER.key: 100 * central_share(merged)}
    return Measured(metrics, {"large": large.numpy(), "merged": merged.numpy()})


def draw(results: Results, setting: Setting, runs: Path) -> Drawing:
    """Three kernels of the first seed: without the branch, with it before merging, and merged."""
    shown = (
        ("k13", "large", BEFORE, "no 3×3 branch"),
        ("k13-reparam", "large", BEFORE, "3×3 branch,\nbefore merging"),
        ("k13-reparam", "merged", AFTER, "3×3 branch,\nmerged"),
    )
    rows = {row.key: row for row in results.ablation.rows}
    panels = []
    numbers: list[list[str | int | float]] = [["row", "kernel", "y", "x", "weight"]]
    for key, kernel, metric, title in shown:
        record = results.first(setting, rows[key])
        if record is None:
            continue
        with np.load(arrays_path(record, runs)) as arrays:
            matrix = arrays[kernel]
        panels.append(Panel(title, matrix, f"central 3×3: {record.metrics[metric.key]:.1f} %"))
        numbers += [[key, kernel, y, x, round(float(value), 5)] for (y, x), value in np.ndenumerate(matrix)]
    title = f"13×13 kernels in MobileNetV2's last stage ({setting.data}, scale {setting.scale})"
    return Drawing(heat_maps(panels, 3, title, "sum of |w|, largest = 1"), numbers)


@ablation(
    figure=6,
    recipe=mobilenetv2_100ep,
    metrics=(BEFORE, AFTER, TOP1),
    measure=measure_kernel,
    draw=draw,
)
def figure6() -> Iterator[Row]:
    """Table 3's 13×13 nets, and the second as it was initialised."""
    yield Row("k13", "mobilenetv2_lk", label="13×13", kernel_size=13)
    for key, label, trained in (("k13-reparam", "", True), ("k13-reparam-random", ", random initialisation", False)):
        name = f"13×13 + 3×3 branch{label}"
        yield Row(key, "mobilenetv2_lk", label=name, trained=trained, kernel_size=13, small_kernel=3)


@figure6.claim("merging the 3×3 branch enhances the central 3×3")
def merging_enhances_the_centre(central_before: dict[str, float], central: dict[str, float]) -> float:
    """Appendix C, Figure 6."""
    return central["k13-reparam"] - central_before["k13-reparam"]


@figure6.claim(
    "the merged kernel has more of its weight in the centre than one trained without the branch",
    Number("central 3×3 of the merged kernel (%)", lambda central: central["k13-reparam"]),
)
def merged_is_more_central_than_plain(central: dict[str, float]) -> float:
    """Appendix C, Figure 6."""
    return central["k13-reparam"] - central["k13"]
