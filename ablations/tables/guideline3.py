"""Guideline 3: re-parameterizing with small kernels makes up for the optimization issue.

MobileNetV2 with all 17 depthwise layers at 3×3, 9×9 or 13×13, alone or with a parallel 3×3 branch that is merged
after training. The paper transfers the same nets to Cityscapes.

At `small` both are on scenes: classified at 56², where 15 of the depthwise layers read maps of 7², segmented at
96², where they read maps of 12² (see ablations/scales.py).

Cost: `python -m ablations.run guideline3`, about 2.5 minutes of training a row and seed at `small` on one thread of an
AMD EPYC with AVX512.
"""

from collections.abc import Iterator

from ablations.measures import by_distance
from ablations.scales import DENSE, DENSE_SMOKE
from ablations.spec import MIOU, TOP1, Number, Row, ablation, least
from replk_lightning.recipes import deeplabv3plus_cityscapes_80k, mobilenetv2_100ep


@ablation(
    table=3,
    recipe=mobilenetv2_100ep,
    metrics=(TOP1, MIOU),
    transfer=deeplabv3plus_cityscapes_80k,
    measure_transfer=by_distance,
    scales={"smoke": DENSE_SMOKE, "small": DENSE},
)
def guideline3() -> Iterator[Row]:
    """Kernel size × small branch."""
    yield Row("k3", "mobilenetv2_lk", label="3×3", kernel_size=3)
    for kernel in (9, 13):
        size = f"{kernel}×{kernel}"
        yield Row(f"k{kernel}", "mobilenetv2_lk", label=size, kernel_size=kernel)
        yield Row(
            f"k{kernel}-reparam", "mobilenetv2_lk", label=f"{size} + 3×3 branch", kernel_size=kernel, small_kernel=3
        )


@guideline3.claim("without re-parameterization, going from 9×9 to 13×13 reduces the accuracy")
def larger_is_worse_without_reparam(top1: dict[str, float]) -> float:
    """Table 3, rows 2 and 4."""
    return top1["k9"] - top1["k13"]


@guideline3.claim("with re-parameterization, going from 9×9 to 13×13 does not reduce the accuracy")
def larger_is_no_worse_with_reparam(top1: dict[str, float]) -> float:
    """Table 3, rows 3 and 5."""
    return top1["k13-reparam"] - top1["k9-reparam"]


@guideline3.claim(
    "re-parameterization improves both large kernels",
    Number("top-1 that 13×13 gains by its branch (points)", lambda top1: top1["k13-reparam"] - top1["k13"], 2),
)
def reparam_helps(top1: dict[str, float]) -> float:
    """Table 3, rows 2 to 5."""
    return least(top1["k9-reparam"] - top1["k9"], top1["k13-reparam"] - top1["k13"])
