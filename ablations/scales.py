"""The three scales: `smoke` shows in seconds that the code path works, `small` measures, `paper` is Appendix A.

What `small` is trained on and how was chosen on one row a family, the 3×3 MobileNetV2 with shortcuts and RepLKNet-3,
with seeds that no table uses, before any other row had been trained; no row has settings of its own. It asks that
training ends (its last quarter moves top-1 by less than 0.5 points), that seeds agree and that a run is cheap:

- Blobs of two to nine lobes on textures of deviation 0.12: of five seeds one saw nothing for half of its training and
  ended at 84 %, the others at 97.5 to 98.2 (with two to six lobes). At 0.08 the plateau is gone, at 0.06 all is seen
  (99.8 % with two to six lobes). At 0.07, taken, six seeds end at 98.8 to 99.4 %, and the last quarter moves those
  looked at by 0.3 to 0.4 points. Scenes of 48² (90 %) and 40² (59 %, two to six lobes) were too small for such nets.
- MobileNetV2, batches of 32: a rate of 0.05 in four epochs ended above 0.025 (98.0, 97.3 %; at 0.12); 0.1 was no
  better. Averaged weights (0.98, 0.99, 0.995 were alike) end training earlier than the last ones.
- RepLKNet-3, batches of 64: 0.004 with batches of 32 gave 91.2 % in three epochs, 0.008 94.2, in five 97.1 without
  drop path, and 0.016 98.6 (at 0.12); here 0.016 in five gives 99.5 %, and the last quarter moves it by 0.1.

Feature maps at `small`: MobileNetV2 sees scenes of 56², with its strides early, so that 15 of its 17 depthwise layers
read maps of 7² as the paper's last stage does; a 13×13 kernel reaches six pixels each way, from the centre all of it,
a 3×3 kernel its neighbours. Segmentation sees 96² and maps of 12². A RepLKNet has five blocks instead of 24 and sees
64²; its four stages work on maps of 16², 8², 4² and 2². ResNets have an eighth of their width.
"""

from dataclasses import replace
from pathlib import Path

from ablations.spec import Ablation, Scale, SpecError
from replk_lightning.recipes import DetectRecipe, Recipe, SegmentRecipe

_TINY_RESNET = {"channels": (8, 16, 32, 64), "stem_width": 8}
_ON_FEW_SCENES: dict[type[Recipe], str] = {SegmentRecipe: "scenes-masks-smoke", DetectRecipe: "scenes-objects-smoke"}
_HEAD = {"gpus": 1, "resolution": 96, "drop_path": 0.0}
_SEGMENT = {**_HEAD, "batch_size": 16, "iterations": 0, "crop": (96, 96), "resize": (96, 96)}
_DETECT = {**_HEAD, "batch_size": 8, "train_sizes": (96,), "test_size": 96, "max_size": 96, "random_crop": False}
_SMOKE_ADAMW = {"gpus": 1, "epochs": 1, "batch_size": 32, "warmup_epochs": 0, "resolution": 32, "ema": None}

SMOKE = Scale(
    name="smoke",
    cost="seconds",
    data="generated",
    results=Path("runs/smoke"),
    seeds=(0,),
    model_options={
        "mobilenetv2": {"width": 0.1, "stem_stride": 1, "strides": (1, 2, 2, 1, 1, 1, 1)},
        "replknet": {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)},
        "replknet_31l": {"dims": (12, 24, 24, 24)},
        "replknet_xl": {"dims": (16, 32, 32, 32)},
        "resnet101": _TINY_RESNET,
        "resnet152": _TINY_RESNET,
    },
    recipe={
        "mobilenetv2": {"gpus": 1, "epochs": 1, "batch_size": 32, "warmup_epochs": 0, "resolution": 32},
        "replknet": _SMOKE_ADAMW,
        "resnet101": _SMOKE_ADAMW,
        "resnet152": _SMOKE_ADAMW,
    },
    timed={"guideline1": ("r16-k3", "r16-k31"), "guideline1_network": ("macs-growth", "parameters-growth")},
)

_MOBILENET = {"width": 0.25, "num_features": 256, "stem_stride": 2, "strides": (2, 2, 1, 1, 1, 1, 1)}
_FIVE_BLOCKS = {"depths": (1, 1, 2, 1)}
_AVERAGE = 0.98
_ADAMW = {
    "gpus": 1,
    "epochs": 5,
    "batch_size": 64,
    "lr": 0.016,
    "warmup_epochs": 0.5,
    "resolution": 64,
    "drop_path": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema": _AVERAGE,
}

SMALL = Scale(
    name="small",
    cost="minutes a run",
    data="scenes-solid",
    results=Path("results"),
    seeds=(10,),  # seeds up to 9 are committed with the repository: the next one is yours
    model_options={
        "mobilenetv2": _MOBILENET,
        "replknet": {"dims": (16, 32, 64, 128), **_FIVE_BLOCKS},
        "replknet_31l": {"dims": (24, 48, 96, 192), **_FIVE_BLOCKS},
        "replknet_xl": {"dims": (32, 64, 128, 256), **_FIVE_BLOCKS},
        "resnet101": _TINY_RESNET,
        "resnet152": _TINY_RESNET,
    },
    recipe={
        "mobilenetv2": {
            "gpus": 1,
            "epochs": 3,
            "batch_size": 32,
            "lr": 0.05,
            "warmup_epochs": 0.5,
            "resolution": 56,
            "dropout": 0.0,
            "ema": _AVERAGE,
        },
        "replknet": _ADAMW,
        "resnet101": _ADAMW,
        "resnet152": _ADAMW,
    },
)

_UPERNET = {**_SEGMENT, "channels": 64, "auxiliary_channels": 32, "ema": _AVERAGE}
_FCOS = {**_DETECT, "channels": 64, "head_convs": 2, "detections": 20, "warmup_steps": 50}
_CASCADE = {**_DETECT, "channels": 32, "head_convs": 1, "fc": 64, "proposals": (64, 32), "rois": 16, "detections": 10}

DENSE = replace(
    SMALL,
    transfer={
        "upernet": {**_UPERNET, "epochs": 3, "lr": 2e-3, "warmup_iterations": 60},
        "deeplabv3plus": {
            **_SEGMENT,
            "channels": 32,
            "auxiliary_channels": 16,
            "epochs": 4,
            "lr": 0.1,
            "ema": _AVERAGE,
        },
        "fcos": {**_FCOS, "epochs": 6, "milestones": (4, 5), "lr": 2e-3},
        "cascade_mask_rcnn": {**_CASCADE, "epochs": 4, "milestones": (3, 4), "lr": 4e-3, "warmup_steps": 50},
    },
    transfer_data={SegmentRecipe: "scenes-solid-masks", DetectRecipe: "scenes-solid-objects"},
)
"""`small` of segmentation and detection: scenes of one blob. Chosen on 3×3 MobileNetV2 and RepLKNet-3, a spare seed:

- DeepLabv3+ at a rate of 0.1: 90.5 % mIoU in two epochs (another seed), 95.6 in four, the last quarter 1.0 points of
  them. At 0.25 it starts later and ends alike (95.8, the last quarter 3.7); batches of 8 end at 95.2 in three.
- UperNet at 0.002: 95.5 % in two epochs (another seed), 94.6 in three, the last quarter 1.1; in batches of 8 95.3, and
  1.3.
- Scenes of 80²: DeepLabv3+ 95.1 in five epochs, the last quarter 1.1.

So a last quarter of 0.5 points within 12 thread-minutes was not found: outlines go on getting finer, at 72 % within two
pixels of one and 99 % from four on. Detectors have what was chosen on scenes of digits."""

_SMALLER = {"epochs": 1, "resolution": 48}
_SEGMENT_SMOKE = {**_UPERNET, **_SMALLER, "crop": (48, 48), "resize": (48, 48), "channels": 8, "ema": None}
_DETECT_SMOKE = {**_SMALLER, "milestones": (), "train_sizes": (48,), "test_size": 48, "max_size": 48}

DENSE_SMOKE = replace(
    SMOKE,
    model_options={**SMOKE.model_options, "mobilenetv2": {**_MOBILENET, "width": 0.1}},
    transfer={
        "upernet": _SEGMENT_SMOKE,
        "deeplabv3plus": _SEGMENT_SMOKE,
        "fcos": {**_FCOS, **_DETECT_SMOKE, "channels": 32, "head_convs": 1},
        "cascade_mask_rcnn": {**_CASCADE, **_DETECT_SMOKE, "channels": 16, "fc": 16},
    },
    transfer_data=_ON_FEW_SCENES,
)

CUE_CONFLICT = replace(SMALL, data="scenes-cue-conflict")
CUE_CONFLICT_SMOKE = replace(SMOKE, data="scenes-cue-conflict")

PAPER = Scale(
    name="paper",
    cost="GPU days",
    data="imagenet-1k",
    results=Path("results"),
    seeds=(0,),
    as_printed=True,  # no entries: nets, recipes and data are the paper's own
)

SCALES = {scale.name: scale for scale in (SMOKE, SMALL, PAPER)}


def get_scale(name: str, ablation: Ablation) -> Scale:
    """The scale called `name`, as `ablation` has it; raises SpecError naming the choices."""
    if name not in SCALES:
        raise SpecError(f"there is no scale {name!r}; choose from {', '.join(SCALES)}.")
    return ablation.scales.get(name, SCALES[name])
