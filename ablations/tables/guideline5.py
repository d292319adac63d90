"""Guideline 5: a large kernel is useful even on small feature maps.

MobileNetV2 with 3×3 kernels but for its last stage (the three 960-channel layers, on 7×7 maps at 224²), which gets
3×3, 7×7 or 13×13 with a 3×3 branch to merge.

At `small` both are on scenes, classified at 56², where the last stage works on 7×7 maps as the paper's does, and
segmented at 96², where it works on 12×12 (see ablations/scales.py).

Cost: `python -m ablations.run guideline5`, about 2 minutes of training a row and seed at `small` on one thread of an
AMD EPYC with AVX512.
"""

from collections.abc import Iterator

from ablations.scales import DENSE, DENSE_SMOKE
from ablations.spec import MIOU, TOP1, Number, Row, ablation, least
from replk_lightning.recipes import deeplabv3plus_cityscapes_80k, mobilenetv2_100ep


@ablation(
    table=4,
    recipe=mobilenetv2_100ep,
    metrics=(TOP1, MIOU),
    transfer=deeplabv3plus_cityscapes_80k,
    scales={"smoke": DENSE_SMOKE, "small": DENSE},
)
def guideline5() -> Iterator[Row]:
    """Kernel size of the last stage."""
    yield Row("last3", "mobilenetv2_lk", label="3×3", kernel_size=3)
    for kernel in (7, 13):
        yield Row(
            f"last{kernel}",
            "mobilenetv2_lk",
            label=f"{kernel}×{kernel}",
            kernel_size=3,
            last_stage_kernel=kernel,
            small_kernel=3,
        )


@guideline5.claim(
    "enlarging the last stage's kernels to 7×7 or 13×13 improves the accuracy",
    Number("top-1 that 13×13 gains (points)", lambda top1: top1["last13"] - top1["last3"], 2),
)
def larger_last_stage_helps(top1: dict[str, float]) -> float:
    """Table 4."""
    return least(top1["last7"], top1["last13"]) - top1["last3"]
