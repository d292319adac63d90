"""The large kernels since: spatial layers of other papers in RepLKNet's skeleton, all of one cost.

An addition to the paper, whose question, what a large kernel brings, has had other answers since. A row is RepLKNet-31
with another layer between the 1×1 convolutions of its blocks, with the kernel sizes of that layer's paper; below stand
the two extremes, no spatial layer at all and a global filter. Training, data and skeleton are the same for all, so it
is the layers that are compared, not the papers' nets, whose recipes, stems and blocks are others.

Every net costs as many multiply-adds as RepLKNet-31, by its width: what a cheaper layer saves goes into wider 1×1
convolutions. Taps that fall on padding are left out of that count, as at 31×31 on maps of 16² they are three of four;
the table's multiply-adds have them, as the paper's do. Layers are counted as they are merged. The field is Table 10's,
the bands of distance are those of `distance`, and latency is what all 24 spatial layers of the paper's size take for
one picture of 224², without the ReLU behind them, by our operator and by torch's own convolution.

What papers add to the layer is left out, SLaK's and ShiftwiseConv's sparse training among it.

Cost: `python -m ablations.run since`, about 15.5 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ablations.measures import MIOU_OF, by_distance
from ablations.scales import CUE_CONFLICT, CUE_CONFLICT_SMOKE, DENSE, DENSE_SMOKE, PAPER
from ablations.spec import MACS, MIOU, PARAMETERS, TOP1, Metric, Number, Row, Scale, ablation, least
from ablations.tables.figure1 import draw
from ablations.tables.table10 import measure_field
from replk_lightning.measure.latency import spatial_seconds
from replk_lightning.models.spatial import spatial_layers
from replk_lightning.models.spatial.cost import dims_of_cost, replknet_multiply_adds
from replk_lightning.recipes import replknet_120ep, upernet_ade20k_80k

LAYERS = {name: layer for name, layer in spatial_layers().items() if layer.__module__.startswith("replk_lightning.")}
EXTREMES = ("none", "global")
ORDER = sorted(LAYERS, key=lambda name: (name in EXTREMES, name != "replk", name == "global", name))
FIELD = Metric("r50", "field, r at t = 50 % (%)", digits=1)
OURS = Metric("ours_ms", "spatial layers, ours (ms)", "timing", 1)
TORCH = Metric("torch_ms", "spatial layers, PyTorch (ms)", "timing", 1)
SIZES = {
    "paper": ((128, 256, 512, 1024), (2, 2, 18, 2), 224, 8),
    "small": ((16, 32, 64, 128), (1, 1, 2, 1), 64, 2),
}
"""Widths and depths of RepLKNet-31 at a scale, the side of its pictures, and what widths are multiples of."""


def sizes_of(name: str) -> dict[str, Any]:
    """The sizes of a layer's kernels as its paper has them."""
    return {"kernel_sizes": LAYERS[name].kernel_sizes, "small_kernel": LAYERS[name].small_kernel}


def widths(scale: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """The `dims` with which each row costs what RepLKNet-31 does."""
    dims, depths, side, multiple = SIZES[scale]
    target = replknet_multiply_adds("replk", dims, depths, side, **sizes_of("replk"))
    return {
        name: {"dims": dims_of_cost(target, multiple, name, dims, depths, side, **sizes_of(name))} for name in LAYERS
    }


def sized(scale: Scale, img_size: int, dims: Mapping[str, Mapping[str, Any]]) -> Scale:
    """`scale` with each row's own width; a global filter is as large as pictures of `img_size` need."""
    replknet = {**scale.model_options.get("replknet", {}), "img_size": img_size}
    return replace(scale, model_options={**scale.model_options, "replknet": replknet, **dims})


WIDTHS = {scale: widths(scale) for scale in SIZES}
PAPER_SIZED = sized(PAPER, 224, WIDTHS["paper"])
SCALES = {"smoke": sized(DENSE_SMOKE, 48, {}), "small": sized(DENSE, 96, WIDTHS["small"]), "paper": PAPER_SIZED}
SHAPE_SCALES = {
    "smoke": sized(CUE_CONFLICT_SMOKE, 32, {}),
    "small": sized(CUE_CONFLICT, 64, WIDTHS["small"]),
    "paper": PAPER_SIZED,
}


def rows() -> Iterator[Row]:
    """RepLKNet-31, the layers since, and the two extremes."""
    for name in ORDER:
        yield Row(name, "replknet_31b", label=LAYERS[name].title, spatial=name, **sizes_of(name))


def time_layers(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    """Milliseconds of the paper's 24 spatial layers for one picture, all rows taking turns."""
    side = SIZES["paper"][2]
    jobs = {row.key: (row.model, side, PAPER_SIZED.options_for(row)) for row in rows}
    seconds = spatial_seconds(jobs)
    return {key: {OURS.key: 1000 * seconds[key, False], TORCH.key: 1000 * seconds[key, True]} for key in jobs}


@ablation(
    recipe=replknet_120ep,
    metrics=(TOP1, MIOU, FIELD, MIOU_OF[0], MIOU_OF[16], PARAMETERS, MACS, OURS, TORCH),
    transfer=upernet_ade20k_80k,
    timing=time_layers,
    measure=measure_field,
    measure_transfer=by_distance,
    draw=draw,
    scales=SCALES,
)
def since() -> Iterator[Row]:
    """A net a layer."""
    yield from rows()


Scores = dict[str, float]


def short(name: str) -> str:
    """Whose layer it is, for sentences."""
    return LAYERS[name].title.partition(":")[0]


def leads_in_top1(name: str) -> Callable[[Scores], float]:
    """Points of top-1 by which a row is ahead of RepLKNet-31."""
    return lambda top1: top1[name] - top1["replk"]


def leads_in_miou(name: str) -> Callable[[Scores], float]:
    """Points of mIoU likewise."""
    return lambda miou: miou[name] - miou["replk"]


def least_lead(scores: Scores) -> float:
    """By how much RepLKNet-31 is ahead of the best other row."""
    return least(*(scores["replk"] - scores[name] for name in ORDER[1:]))


@since.claim(
    "RepLKNet-31 classifies at least as well as every other layer of its cost",
    Number("top-1 of RepLKNet-31 less the best other layer's (points)", lambda top1: least_lead(top1), 2),
)
def replknet_is_the_best(top1: Scores) -> float:
    """What the papers since deny."""
    return least_lead(top1)


for name in ORDER[1:]:
    since.claim(f"{short(name)} classifies better than RepLKNet-31 of its cost")(leads_in_top1(name))
    since.claim(f"{short(name)} segments better than RepLKNet-31 of its cost")(leads_in_miou(name))
