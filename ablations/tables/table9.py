"""Object detection on COCO: FCOS (24 epochs) and Cascade Mask R-CNN (36 epochs).

Multiply-adds at 800×1280 with 1000 proposals to every box head and 100 to every mask head, of the nets as they are
trained: counted so, RepLKNet-31B's and 31L's agree with the paper's.

At `small` there are no larger data to pre-train on: rows of ImageNet-22K are left out, and RepLKNet-XL, of the others'
width there, has theirs.

Cost: `python -m ablations.run table9`; at `small` not measured yet.
"""

from collections.abc import Iterator

from ablations.scales import DENSE, DENSE_SMOKE
from ablations.spec import DENSE_MACS, DENSE_PARAMETERS, Metric, Number, Row, ablation, least
from ablations.tables.table6 import SWIN_B_224, SWIN_L_224
from replk_lightning import recipes

BOX_AP = Metric("box_ap", "box AP (%)", "transfer", 1)
MASK_AP = Metric("mask_ap", "mask AP (%)", "transfer", 1)
X101 = "resnext101_64x4d"


@ablation(
    table=9,
    recipe=recipes.replknet_300ep,
    metrics=(BOX_AP, MASK_AP, DENSE_PARAMETERS, DENSE_MACS),
    transfer=recipes.cascade_mask_rcnn_3x,
    scales={"smoke": DENSE_SMOKE, "small": DENSE},
)
def table9() -> Iterator[Row]:
    """FCOS, then Cascade Mask R-CNN, each with the baselines that timm has."""
    fcos, pre22k, at_22k = recipes.fcos_2x, " (ImageNet-22K)", recipes.cascade_mask_rcnn_3x_22k
    yield Row("replknet31b-fcos", "replknet_31b", label="RepLKNet-31B, FCOS", transfer=fcos)
    yield Row("x101-fcos", X101, label="ResNeXt-101-64x4d, FCOS", trained=False, transfer=fcos)
    yield Row("replknet31b", "replknet_31b", label="RepLKNet-31B")
    yield Row("x101", X101, label="ResNeXt-101-64x4d", trained=False)
    yield Row("swin-b", SWIN_B_224, label="Swin-B", trained=False)
    yield Row("replknet31b-22k", "replknet_31b", label=f"RepLKNet-31B{pre22k}", transfer=at_22k)
    yield Row("swin-b-22k", SWIN_B_224, label=f"Swin-B{pre22k}", trained=False, transfer=at_22k)
    at_31l = recipes.cascade_mask_rcnn_3x_31l
    yield Row("replknet31l-22k", "replknet_31l", label=f"RepLKNet-31L{pre22k}", transfer=at_31l)
    yield Row("swin-l-22k", SWIN_L_224, label=f"Swin-L{pre22k}", trained=False, transfer=at_31l)
    xl, at_xl = "RepLKNet-XL (extra data)", recipes.cascade_mask_rcnn_3x_xl
    yield Row("replknetxl", "replknet_xl", label=xl, recipe=recipes.xl_semi_supervised, transfer=at_xl)


@table9.claim("RepLKNet-31B outperforms ResNeXt-101-64x4d with both detectors")
def beats_resnext(box_ap: dict[str, float]) -> float:
    """Sec. 4.5: "by up to 4.4 mAP"."""
    return least(box_ap["replknet31b-fcos"] - box_ap["x101-fcos"], box_ap["replknet31b"] - box_ap["x101"])


@table9.claim("RepLKNet-31B's detectors have fewer parameters and multiply-adds than ResNeXt-101-64x4d's", unit="times")
def is_smaller_than_resnext(dense_parameters: dict[str, float], dense_macs: dict[str, float]) -> float:
    """Sec. 4.5: "while have fewer parameters and lower FLOPs"."""
    pairs = (("replknet31b-fcos", "x101-fcos"), ("replknet31b", "x101"))
    return least(*(cost[theirs] / cost[ours] - 1 for cost in (dense_parameters, dense_macs) for ours, theirs in pairs))


@table9.claim(
    "RepLKNets reach Swin's box AP or more, size by size",
    Number("RepLKNet-31B's box AP, Cascade Mask R-CNN (%)", lambda box_ap: box_ap["replknet31b"]),
)
def reaches_swin(box_ap: dict[str, float]) -> float:
    """Sec. 4.5: "higher or comparable mAP", to the rounding of the printed numbers."""
    pairs = (("replknet31b", "swin-b"), ("replknet31b-22k", "swin-b-22k"), ("replknet31l-22k", "swin-l-22k"))
    return 0.05 + least(*(box_ap[ours] - box_ap[theirs] for ours, theirs in pairs))
