"""Dense large kernels against dilated small ones of the same maximum receptive field (Sec. 5.3).

MobileNetV2 with all 17 depthwise layers at 9×9 or 13×13, or at 3×3 dilated by 4 or 6, which covers as many pixels
with nine weights. The paper's multiply-adds (319 M and 361 M) do not follow from replacing all 17 layers, though
its parameters do; ours are those of the nets that are trained.

At `small` 15 of the depthwise layers read maps of 7² (see ablations/scales.py): there, the outer taps of a 3×3 kernel
dilated by 6 leave the map from every pixel but those of its edge.

Cost: `python -m ablations.run table11`, about 2 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Iterator
from dataclasses import replace

from ablations.spec import MACS, PARAMETERS, TOP1, Number, Row, ablation, least
from replk_lightning.recipes import mobilenetv2_100ep


@ablation(table=11, recipe=mobilenetv2_100ep, metrics=(TOP1, PARAMETERS, replace(MACS, digits=3)))
def table11() -> Iterator[Row]:
    """Two receptive fields, dense and dilated."""
    for kernel, dilation in ((9, 4), (13, 6)):
        yield Row(f"k{kernel}", "mobilenetv2_lk", label=f"{kernel}×{kernel}", kernel_size=kernel)
        yield Row(
            f"k3-dilated{dilation}",
            "mobilenetv2_lk",
            label=f"3×3 dilated by {dilation} (reaches {kernel}×{kernel})",
            kernel_size=3,
            dilation=dilation,
        )


@table11.claim(
    "a dense kernel is better than a dilated 3×3 of the same maximum receptive field",
    Number("top-1 that 3×3 dilated by 6 loses to 13×13 (points)", lambda top1: top1["k13"] - top1["k3-dilated6"]),
)
def dense_beats_dilated(top1: dict[str, float]) -> float:
    """Table 11."""
    return least(top1["k9"] - top1["k3-dilated4"], top1["k13"] - top1["k3-dilated6"])


@table11.claim("the more a 3×3 kernel is dilated, the worse")
def more_dilation_is_worse(top1: dict[str, float]) -> float:
    """Table 11."""
    return top1["k3-dilated4"] - top1["k3-dilated6"]
