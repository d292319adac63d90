"""The three scales: `smoke` shows in seconds that the code path works, `small` measures, `paper` is Appendix A.

Hyper-parameters of `small` were chosen for speed and stability on one row only, the 3×3 MobileNetV2 with shortcuts
(RepLKNet's on RepLKNet-3, Appendix A's on its row with 10 % of the labels alone), before any other row had been
trained; no row has settings of its own. MobileNetV2's
learning rates 0.025, 0.05, 0.1 and 0.2 gave 96.3, 96.7, 95.9 and 92.4 % with a seed that no table uses; RepLKNet's
0.001, 0.002, 0.004 and 0.008 gave 59.6, 73.1, 86.4 and 92.7 % in four epochs, and 0.008 in six gave 96.4 %; Appendix
A's 0.002, 0.004, 0.008, 0.016 and 0.032 gave 90.1, 95.0, 95.1, 95.7 and 95.4 %, and nothing else was tried.

Feature maps at `small`: MobileNetV2 sees 32×32 digits, with stride 1 in its stem and in its last four stages, so its
17 depthwise layers read maps of 32² (two), 16² (two) and 8² (thirteen), much as the paper's last stage reads 7². A
13×13 kernel reaches six pixels each way, from the centre of an 8×8 map all of it; a 3×3 kernel its neighbours.
RepLKNet sees 64×64 digits; its four stages work on maps of 16², 8², 4² and 2².

The figures train on `scenes` at `small`: RepLKNets of five blocks instead of 24 and ResNets of an eighth of the width
on 64², MobileNetV2 on 56² with its strides early, so that fourteen depthwise layers read maps of 7² as in the paper's
last stage.
"""

from dataclasses import replace
from pathlib import Path

from ablations.spec import Ablation, Scale, SpecError
from replk_lightning.recipes import DetectRecipe, Recipe, SegmentRecipe

_TINY_RESNET = {"channels": (8, 16, 32, 64), "stem_width": 8}
_ON_SCENES: dict[type[Recipe], str] = {SegmentRecipe: "scenes-masks", DetectRecipe: "scenes-objects"}
_ON_FEW_SCENES = {task: f"{data}-smoke" for task, data in _ON_SCENES.items()}
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

SMALL = Scale(
    name="small",
    cost="minutes to half an hour a seed",
    data="mnist5k",
    results=Path("results"),
    seeds=(3,),  # seeds 0 to 2 are committed with the repository: the next one is yours
    model_options={
        "mobilenetv2": {"width": 0.25, "stem_stride": 1, "strides": (1, 2, 2, 1, 1, 1, 1)},
        "replknet": {"dims": (16, 32, 64, 128)},
        "replknet_31l": {"dims": (24, 48, 96, 192)},
        "replknet_xl": {"dims": (32, 64, 128, 256)},
    },
    recipe={
        "mobilenetv2": {"gpus": 1, "epochs": 4, "batch_size": 64, "lr": 0.05, "warmup_epochs": 0.5, "resolution": 32},
        "replknet": {
            "gpus": 1,
            "epochs": 6,
            "batch_size": 64,
            "lr": 8e-3,
            "warmup_epochs": 0.5,
            "resolution": 64,
            "drop_path": 0.1,
            "mixup": 0.0,
            "cutmix": 0.0,
            "ema": None,
        },
    },
)

_MOBILENET = {"width": 0.25, "stem_stride": 2, "strides": (2, 2, 1, 1, 1, 1, 1)}
_ADAMW = {**SMALL.recipe["replknet"], "epochs": 8}

SCENES = replace(
    SMALL,
    data="scenes",
    model_options={
        "mobilenetv2": _MOBILENET,
        "replknet": {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1)},
        "resnet101": _TINY_RESNET,
        "resnet152": _TINY_RESNET,
    },
    recipe={
        "mobilenetv2": {**SMALL.recipe["mobilenetv2"], "epochs": 4, "resolution": 56},
        "replknet": _ADAMW,
        "resnet101": _ADAMW,
        "resnet152": _ADAMW,
    },
)
"""`small` of the figures."""

_UPERNET = {**_SEGMENT, "channels": 64, "auxiliary_channels": 32}
_FCOS = {**_DETECT, "channels": 64, "head_convs": 2, "detections": 20, "warmup_steps": 50}
_CASCADE = {**_DETECT, "channels": 32, "head_convs": 1, "fc": 64, "proposals": (64, 32), "rois": 16, "detections": 10}

DENSE = replace(
    SCENES,
    transfer={
        "upernet": {**_UPERNET, "epochs": 6, "lr": 2e-3, "warmup_iterations": 60},
        "deeplabv3plus": {**_SEGMENT, "channels": 32, "auxiliary_channels": 16, "epochs": 6, "lr": 0.1},
        "fcos": {**_FCOS, "epochs": 6, "milestones": (4, 5), "lr": 2e-3},
        "cascade_mask_rcnn": {**_CASCADE, "epochs": 4, "milestones": (3, 4), "lr": 4e-3, "warmup_steps": 50},
    },
    transfer_data=_ON_SCENES,
)
"""`small` of segmentation and detection: nets of the figures' widths, trained on scenes of one digit, carried over to
scenes of up to three. UperNet's learning rate gave RepLKNet-3 64 % mIoU after six epochs of ten, with a seed that no
table uses; 0.004 was tried with half the channels and four epochs only, 37.7 %. DeepLabv3+'s was chosen on MobileNetV2
with 3×3 kernels, a seed that no table uses, in four epochs: 0.05, 0.1 and 0.2 gave 32.4, 32.7 and 28.3 % mIoU (with
twice the channels, 0.02 in six gave 27.1 % and 0.05 in three 32.7 %). The detectors' were chosen on RepLKNet-3:
FCOS's 0.001, 0.002 and 0.003 gave 57.3, 59.2 and 58.9 % box AP, Cascade Mask R-CNN's 0.002 and 0.004 gave 52.4 and
56.2 %."""

_SMALLER = {"epochs": 1, "resolution": 48}
_SEGMENT_SMOKE = {**_UPERNET, **_SMALLER, "crop": (48, 48), "resize": (48, 48), "channels": 8}
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

FEW_LABELS = replace(
    SMALL,
    model_options={"replknet": {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}},
    recipe={"replknet": {**SMALL.recipe["replknet"], "lr": 0.016}},
)
"""`small` of Appendix A: the figures' five blocks on 64² digits."""

CUE_CONFLICT = replace(SCENES, data="scenes-cue-conflict")
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
