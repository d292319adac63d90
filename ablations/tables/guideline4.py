"""Guideline 4: large convolutions boost downstream tasks much more than classification.

Rows of Tables 3 and 5 (`guideline3` and `table5` train and record them): what MobileNetV2 gains from 3×3 to 9×9 with a
3×3 branch, and RepLKNet from 3-3-3-3 to 31-29-27-13, in classification and, carried over, in segmentation. The paper
classifies ImageNet and segments Cityscapes and ADE20K; at `small`, solid scenes are classified and segmented.

Cost: `python -m ablations.run guideline4` trains what `guideline3` and `table5` would, and nothing else.
"""

from collections.abc import Iterator
from pathlib import Path

from ablations.paper import paper_values
from ablations.report.plots import gains
from ablations.report.results import Results, Setting
from ablations.report.verdicts import partners
from ablations.spec import MIOU, TOP1, Drawing, Number, Row, ablation
from ablations.tables.guideline3 import guideline3
from ablations.tables.table5 import table5

NAMES = {TOP1.key: "classification, top-1", MIOU.key: "segmentation, mIoU"}


def draw(results: Results, setting: Setting, runs: Path) -> Drawing:
    """A group of bars a net: the paper's two gains and ours, a dot a seed."""
    paper, rows = paper_values(results.ablation), [row for row in results.ablation.rows if row.gain]
    settings = {TOP1.key: [setting], MIOU.key: partners(results, setting)}
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        group = groups.setdefault(row.label, {})
        for metric in (TOP1, MIOU):
            group[f"{NAMES[metric.key]}, paper"] = [paper[metric.key][row.key]]
            group[f"{NAMES[metric.key]}, ours"] = [
                sample for its in settings[metric.key] for sample in results.samples(its, row, metric)
            ]
    numbers: list[list[str | float]] = [["net", "gain", "points"]]
    numbers += [
        [net, name, round(v, 4)] for net, group in groups.items() for name, values in group.items() for v in values
    ]
    return Drawing(gains(groups, f"What large kernels gain ({setting.data}, scale {setting.scale})"), numbers)


@ablation(guideline=4, recipe=table5.recipe, metrics=(TOP1, MIOU), draw=draw, records_of=(guideline3, table5))
def guideline4() -> Iterator[Row]:
    """Two pairs of nets, each with its gain."""
    rows = {row.key: row for row in (*guideline3.rows, *table5.rows)}
    for behind, ahead, net in (("k3", "k9-reparam", "MobileNetV2"), ("replknet3", "replknet31", "RepLKNet")):
        for key in (behind, ahead):
            row = rows[key]
            yield Row(key, row.model, label=f"{net} {row.label}", **row.options)
        label = f"{net}, gain from {rows[behind].label} to {rows[ahead].label}"
        yield Row(f"{net.lower()}-gain", rows[ahead].model, label=label, trained=False, gain=(ahead, behind))


@guideline4.claim("MobileNetV2 gains more in segmentation than in classification")
def mobilenet_gains_more_downstream(top1: dict[str, float], miou: dict[str, float]) -> float:
    """Sec. 3: 1.33 points of accuracy, 3.99 of mIoU."""
    return (miou["k9-reparam"] - miou["k3"]) - (top1["k9-reparam"] - top1["k3"])


def _lead_downstream(top1: dict[str, float], miou: dict[str, float]) -> float:
    return (miou["replknet31"] - miou["replknet3"]) - (top1["replknet31"] - top1["replknet3"])


@guideline4.claim(
    "RepLKNet gains more in segmentation than in classification",
    Number("RepLKNet's gain in mIoU less its gain in top-1 (points)", _lead_downstream, 2),
)
def replknet_gains_more_downstream(top1: dict[str, float], miou: dict[str, float]) -> float:
    """Sec. 3: 0.96 points of accuracy, 3.12 of mIoU."""
    return _lead_downstream(top1, miou)
