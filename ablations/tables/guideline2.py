"""Guideline 2: identity shortcuts are vital, above all for very large kernels.

MobileNetV2 with all 17 depthwise layers at 3×3 or 13×13, with its ten identity shortcuts or without them. The paper
trains on ImageNet-1K for 100 epochs; without shortcuts, 13×13 loses 18.6 points, 3×3 only 3.1.

At `small` scenes of solid blobs are classified at 56², where 15 of the depthwise layers read maps of 7², as the paper's
last stage does (see ablations/scales.py).

Cost: `python -m ablations.run guideline2`, about 2.5 minutes of training a row and seed at `small` on one thread of an
AMD EPYC with AVX512.
"""

from collections.abc import Iterator

from ablations.spec import TOP1, Number, Row, ablation
from replk_lightning.recipes import mobilenetv2_100ep


@ablation(table=2, recipe=mobilenetv2_100ep, metrics=(TOP1,))
def guideline2() -> Iterator[Row]:
    """Kernel size × shortcut."""
    for shortcut in (True, False):
        for kernel in (3, 13):
            name = "shortcut" if shortcut else "plain"
            label = f"{kernel}×{kernel}, {'shortcuts' if shortcut else 'no shortcuts'}"
            yield Row(f"k{kernel}-{name}", "mobilenetv2_lk", label=label, kernel_size=kernel, shortcut=shortcut)


@guideline2.claim("with shortcuts, 13×13 is better than 3×3")
def large_kernels_help_with_shortcuts(top1: dict[str, float]) -> float:
    """Table 2, rows 1 and 2."""
    return top1["k13-shortcut"] - top1["k3-shortcut"]


@guideline2.claim(
    "without shortcuts, 13×13 is worse than 3×3",
    Number("top-1 that 13×13 loses without shortcuts (points)", lambda top1: top1["k3-plain"] - top1["k13-plain"]),
)
def large_kernels_need_shortcuts(top1: dict[str, float]) -> float:
    """Table 2, rows 3 and 4."""
    return top1["k3-plain"] - top1["k13-plain"]


@guideline2.claim("removing the shortcuts costs the 13×13 net more than the 3×3 net")
def large_kernels_lose_more(top1: dict[str, float]) -> float:
    """Table 2, all rows."""
    return (top1["k13-shortcut"] - top1["k13-plain"]) - (top1["k3-shortcut"] - top1["k3-plain"])
