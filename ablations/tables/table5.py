"""RepLKNet with different kernel sizes.

Five nets of one shape, B = [2, 2, 18, 2] and C = [128, 256, 512, 1024], that differ in their kernels only. Parameters
are counted with every BN folded and multiply-adds on the merged net, as the paper does.

At `small` the nets have five blocks and an eighth of the width. Scenes are classified at 64², on maps of 16², 8², 4²
and 2², and segmented at 96², on maps of 24², 12², 6² and 3²: 31×31 reaches all of each from each of its pixels, and
13×13 differs from 7×7 in the first two or three stages (see ablations/scales.py).

Cost: `python -m ablations.run table5`, about 2 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Iterator

from ablations.measures import by_distance
from ablations.scales import DENSE, DENSE_SMOKE
from ablations.spec import DENSE_MACS, DENSE_PARAMETERS, MACS, MIOU, PARAMETERS, TOP1, Number, Row, ablation, least
from replk_lightning.recipes import replknet_120ep, upernet_ade20k_80k

KERNELS = {3: "3-3-3-3", 7: "7-7-7-7", 13: "13-13-13-13", 25: "25-25-25-13", 31: "31-29-27-13"}


@ablation(
    table=5,
    recipe=replknet_120ep,
    metrics=(TOP1, PARAMETERS, MACS, MIOU, DENSE_PARAMETERS, DENSE_MACS),
    transfer=upernet_ade20k_80k,
    measure_transfer=by_distance,
    scales={"smoke": DENSE_SMOKE, "small": DENSE},
)
def table5() -> Iterator[Row]:
    """One net a kernel size."""
    for kernel, label in KERNELS.items():
        yield Row(f"replknet{kernel}", "replknet_31b" if kernel == 31 else f"replknet_{kernel}", label=label)


@table5.claim(
    "increasing the kernel sizes from 3 to 13 improves the accuracy",
    Number("top-1 gained from 3 to 13 (points)", lambda top1: top1["replknet13"] - top1["replknet3"], 2),
)
def kernels_up_to_13_help(top1: dict[str, float]) -> float:
    """Sec. 4.2 on Table 5."""
    return least(top1["replknet7"] - top1["replknet3"], top1["replknet13"] - top1["replknet7"])


@table5.claim("kernels beyond 13 bring no further improvement on classification (at most 0.1 points)")
def larger_kernels_do_not_help_imagenet(top1: dict[str, float]) -> float:
    """Sec. 4.2: "making them even larger brings no further improvements"."""
    return 0.1 + top1["replknet13"] + least(-top1["replknet25"], -top1["replknet31"])
