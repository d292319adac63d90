"""How large the effective receptive fields are: high-contribution area ratios of deep and of large-kernel nets.

The ratio r is the share of the input's area that the smallest centred square takes up which holds more than t of the
contribution scores (Appendix B, Eq. 1 and 2, sum over pictures, no ReLU) on the map before the last norm, which is the
release's. All fields are measured at 1024², as in the paper: at `small` on fifteen photographs shipped by scikit-image,
with the nets trained on 64² scenes that are cut from the same photographs; elsewhere on 50 validation images of the
data set. Kernels, strides and the ResNets' depths are the paper's at `small`, the widths an eighth, and a RepLKNet has
five blocks instead of 24: its field is smaller for it.

A random net's field says nothing about the trained one's: it is measured here too, in rows of its own. Weights that are
given, as in `--init replknet31=RepLKNet-31B_ImageNet-1K_224.pth`, are measured as they are and not trained any further.

Cost: `python -m ablations.run table10`, about 3.5 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ablations.spec import TOP1, Measured, Metric, Number, Row, ablation, least
from replk_lightning.recipes import replknet_120ep

if TYPE_CHECKING:
    from replk_lightning.data import ImageData

THRESHOLDS = {"r20": 0.2, "r30": 0.3, "r50": 0.5, "r99": 0.99}
SIDE = 1024
IMAGES = 50
THUMBNAIL = 128

NETS = {
    "resnet101": ("resnet101", "ResNet-101"),
    "resnet152": ("resnet152", "ResNet-152"),
    "replknet13": ("replknet_13", "RepLKNet-13"),
    "replknet31": ("replknet_31b", "RepLKNet-31"),
}


def measure_field(net: nn.Module, data: "ImageData") -> Measured:
    """Area ratios in percent; the matrix as a thumbnail, and the share inside every centred square, for the figure."""
    from replk_lightning.measure.erf import area_ratio, contribution, square_shares  # imports Lightning

    matrix = contribution(net, _pictures(data), progress=True)
    ratios = area_ratio(matrix, list(THRESHOLDS.values()))
    block = max(1, len(matrix) // THUMBNAIL)
    thumbnail = matrix.reshape(len(matrix) // block, block, -1, block).mean(axis=(1, 3))
    metrics = {key: 100 * ratio for key, ratio in zip(THRESHOLDS, ratios, strict=True)}
    arrays = {"field": thumbnail.astype(np.float16), "shares": square_shares(matrix).astype(np.float32)}
    return Measured(metrics, arrays)


def _pictures(data: "ImageData") -> Iterable[Tensor]:
    from replk_lightning.data.scenes import MEAN, STD, Scenes
    from replk_lightning.measure.erf import photographs

    if isinstance(data, Scenes):
        return photographs(SIDE, MEAN, STD)
    if data.name == "generated":  # scale smoke: does the code path work?
        return (data.splits.val[n][0] for n in range(4))
    images: Any = data.at_size(SIDE).splits.val  # all but streams know their length
    chosen = (images[n] for n in np.linspace(0, len(images) - 1, IMAGES).astype(int))
    return (each[0] for each in chosen if each is not None)  # what cannot be read is left out


@ablation(
    table=10,
    recipe=replknet_120ep,
    metrics=(*(Metric(key, f"r at t = {t:.0%} (%)", digits=1) for key, t in THRESHOLDS.items()), TOP1),
    measure=measure_field,
)
def table10() -> Iterator[Row]:
    """Four nets trained alike, and the same four as they were initialised."""
    for key, (model, label) in NETS.items():
        yield Row(key, model, label=label)
    for key, (model, label) in NETS.items():
        yield Row(f"{key}-random", model, label=f"{label}, random initialisation", trained=False)


Ratios = dict[str, float]


@table10.claim(
    "RepLKNet-31's field is larger than RepLKNet-13's at every threshold",
    Number("area with half of RepLKNet-31's contribution (%)", lambda r50: r50["replknet31"]),
)
def larger_kernels_larger_field(r20: Ratios, r30: Ratios, r50: Ratios, r99: Ratios) -> float:
    """Table 10."""
    return least(*(r["replknet31"] - r["replknet13"] for r in (r20, r30, r50, r99)))


@table10.claim("both RepLKNets' fields are larger than both ResNets' at every threshold")
def large_kernels_beat_depth(r20: Ratios, r30: Ratios, r50: Ratios, r99: Ratios) -> float:
    """Sec. 5.1: "While being significantly deeper, ResNets have much smaller ERFs than RepLKNets"."""
    pairs = [(ours, theirs) for ours in ("replknet13", "replknet31") for theirs in ("resnet101", "resnet152")]
    return least(*(r[ours] - r[theirs] for r in (r20, r30, r50, r99) for ours, theirs in pairs))


@table10.claim("from ResNet-101 to ResNet-152, r at t = 50 % grows by less than two points")
def depth_hardly_helps(r50: Ratios) -> float:
    """Sec. 5.1: "Adding more layers to ResNet-101 does not effectively enlarge the ERF"."""
    return 2 - (r50["resnet152"] - r50["resnet101"])
