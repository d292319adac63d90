"""Guideline 1, the whole network: what large depthwise kernels cost RepLKNet-31.

How much multiply-adds and parameters grow from RepLKNet-3 to RepLKNet-31 (merged, every BN folded), and the share of
RepLKNet-31B's inference time at 224² that its depthwise layers take, with torch's convolution and with ours. The
paper's shares are a 2080 Ti's; `--timing` measures them on the device at hand, in float32 and on a GPU in bf16 too, at
batch 64 on a GPU and 4 on a CPU; of a net by torch.compile, on a GPU, they are the eager layers' time over its own.
The ReLU behind a depthwise layer counts as the layer's, which computes it (the H100's records are older, and count it
apart).

Cost: `python -m ablations.run guideline1_network --timing` trains nothing.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ablations.measures import forms_here, in_all_forms
from ablations.spec import Metric, Number, Row, ablation, least
from replk_lightning.measure.complexity import complexity
from replk_lightning.measure.latency import depthwise_share
from replk_lightning.recipes import replknet_120ep


def batch_size() -> int:
    """The paper's 64 images on a GPU, 4 on a CPU."""
    return 64 if torch.cuda.is_available() else 4


PERCENT = Metric("percent", "percent", "timing", 1)


def measure(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    """Each row's percentage."""
    small, large = (complexity(name, folded=True) for name in ("replknet_3", "replknet_31b"))
    counted = {
        "macs-growth": 100 * (large.macs / small.macs - 1),
        "parameters-growth": 100 * (large.parameters / small.parameters - 1),
    }
    values = {}
    for row in rows:
        if row.key in counted:
            values[row.key] = {"percent": counted[row.key]}
            continue
        stock = row.key == "share-torch"
        values[row.key] = {
            metric: depthwise_share(row.model, 224, batch_size(), stock=stock, **form)
            for metric, form in forms_here(PERCENT).items()
        }
    return values


@ablation(table=1, recipe=replknet_120ep, metrics=in_all_forms(PERCENT), timing=measure)
def guideline1_network() -> Iterator[Row]:
    """Two growths and two shares."""
    for key, label in (
        ("macs-growth", "multiply-adds, from RepLKNet-3 to RepLKNet-31"),
        ("parameters-growth", "parameters, from RepLKNet-3 to RepLKNet-31"),
        ("share-torch", "depthwise layers' share of the latency, torch's convolution"),
        ("share-ours", "depthwise layers' share of the latency, ours"),
    ):
        yield Row(key, "replknet_31b", label=label, trained=False)


@guideline1_network.claim("31-29-27-13 instead of 3-3-3-3 adds less than a fifth to multiply-adds and parameters")
def large_kernels_are_cheap(percent: dict[str, float]) -> float:
    """Sec. 3, Guideline 1: 18.6 % and 10.4 %, "which is acceptable"."""
    return least(20 - percent["macs-growth"], 20 - percent["parameters-growth"])


@guideline1_network.claim(
    "a good implementation brings the depthwise layers' share of the latency down",
    Number("share of the latency with our layer (%)", lambda percent: percent["share-ours"]),
)
def share_falls(percent: dict[str, float]) -> float:
    """Sec. 3, Remark 1: from 49.5 % to 12.3 %."""
    return percent["share-torch"] - percent["share-ours"]
