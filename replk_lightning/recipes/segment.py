"""Semantic segmentation's recipes (Sec. 3, Guidelines 3 to 5; Sec. 4.2 and 4.4), every field beside its source.

`paper` and `release` mean what they mean in `classify`; `mmseg` is MMSegmentation's default, which the paper says it
keeps ("we only replace the backbone and keep all the default training settings"); `here` marks our own choices.
"""

from dataclasses import dataclass
from typing import Any, Literal

from replk_lightning.recipes.base import HALF, Recipe


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(Recipe):
    """A recipe of iterations instead of epochs (`iterations=0` goes back to `epochs`), with a polynomial schedule.

    The learning rate goes linearly up from zero in `warmup_iterations` and then by `(1 - progress) ** power` down to
    `min_lr`. Images are scaled by a ratio out of `scales`, flipped, changed in colour and cropped to `crop` (height,
    width). `count_size` is the input at which the paper counts multiply-adds, `num_classes` its data set's.
    `evaluation` says whether a whole image is predicted at once or in windows of the crop's size, two thirds of it
    apart; `multi_scale` are the ratios of the second evaluation, each also flipped.
    """

    head: Literal["upernet", "deeplabv3plus"]
    data: str
    num_classes: int
    iterations: int
    warmup_iterations: int = 0
    power: float = 1.0
    crop: tuple[int, int]
    resize: tuple[int, int]
    scales: tuple[float, float] = (0.5, 2.0)
    count_size: tuple[int, int]
    channels: int = 512
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    head_dropout: float = 0.1
    align_corners: bool = False
    evaluation: Literal["whole", "slide"] = "whole"
    multi_scale: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be a multiple of: DeepLabv3+'s decoder doubles maps of stride 8."""
        return 8 if self.head == "deeplabv3plus" else 1

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.iterations > 0 or self.epochs > 0

    @property
    def length(self) -> dict[str, Any]:
        """How long to train, for `lightning.Trainer`."""
        return {"max_steps": self.iterations, "max_epochs": -1} if self.iterations else {"max_epochs": self.epochs}


def deeplabv3plus_cityscapes_80k() -> SegmentRecipe:
    """MobileNetV2 with DeepLabv3+ on Cityscapes (Sec. 3, Guidelines 3 and 5): Tables 3 and 4."""
    return SegmentRecipe(
        name="deeplabv3plus_cityscapes_80k",
        head="deeplabv3plus",  # paper: "with DeepLabv3+"
        data="cityscapes",  # paper: "on Cityscapes"
        num_classes=19,
        starts_from="mobilenetv2_100ep",  # paper: "We then transfer the ImageNet-trained models"
        gpus=4,  # mmseg
        batch_size=4 * 2,  # mmseg
        iterations=80_000,  # mmseg
        epochs=0,
        warmup_epochs=0,
        crop=(512, 1024),  # mmseg
        resize=(1024, 2048),  # mmseg: the images' own size
        count_size=(512, 1024),  # here: the paper counts none
        optimizer="sgd",  # mmseg
        lr=0.01,  # mmseg
        min_lr=1e-4,  # mmseg
        momentum=0.9,  # mmseg
        weight_decay=5e-4,  # mmseg
        decay_norm_and_bias=True,  # mmseg
        power=0.9,  # mmseg
    )


def upernet_ade20k_80k() -> SegmentRecipe:
    """RepLKNet-3 to -31 with UperNet on ADE20K, 80K iterations (Sec. 4.2): Table 5."""
    return SegmentRecipe(
        name="upernet_ade20k_80k",
        head="upernet",  # paper: "adopt UperNet [97] implemented by MMSegmentation"
        data="ade20k",  # paper: "we use ADE20K"
        num_classes=150,  # paper: "150 categories"
        starts_from="replknet_120ep",  # paper: "We use the ImageNet-trained models as backbones"
        gpus=8,  # release
        batch_size=8 * 2,  # release
        iterations=80_000,  # paper: "the 80K-iteration training setting"
        epochs=0,
        warmup_epochs=0,
        warmup_iterations=1500,  # release
        crop=(512, 512),  # release
        resize=(512, 2048),  # release: short and long side at most
        count_size=(512, 2048),  # paper: "with input of 2048×512, following Swin"
        optimizer="adamw",  # release
        lr=2e-4,  # release
        weight_decay=0.05,  # release; none on norms
        power=1.0,  # release
        drop_path=0.5,  # release
    )


def upernet_ade20k_160k() -> SegmentRecipe:
    """RepLKNet-31B with UperNet on ADE20K, 160K iterations (Sec. 4.4): Table 8, ImageNet-1K."""
    return upernet_ade20k_80k().with_overrides(
        name="upernet_ade20k_160k",
        iterations=160_000,  # paper: "160K for ADE20K"
        starts_from="replknet_300ep",  # paper: "the pretrained models" of Sec. 4.3
    )


def upernet_ade20k_160k_640() -> SegmentRecipe:
    """RepLKNet-31B and 31L from ImageNet-22K at 640² (Sec. 4.4): Table 8, rows marked ‡."""
    return upernet_ade20k_160k().with_overrides(
        name="upernet_ade20k_160k_640",
        starts_from="replknet_pretrain_22k",  # paper: "‡ indicates ImageNet-22K pretraining"
        crop=(640, 640),  # paper: "640×640 finetuning"
        resize=(640, 2560),  # release
        count_size=(640, 2560),  # paper: "2560×640 for the ImageNet-22K and larger"
        drop_path=0.3,  # release
    )


def upernet_ade20k_160k_xl() -> SegmentRecipe:
    """RepLKNet-XL at 640² (Sec. 4.4): Table 8's last row."""
    return upernet_ade20k_160k_640().with_overrides(
        name="upernet_ade20k_160k_xl",
        starts_from="xl_semi_supervised",  # paper: "Pretrained with our semi-supervised dataset"
        drop_path=0.5,  # release
        mean=HALF,  # release
        std=HALF,
    )


def upernet_cityscapes_80k() -> SegmentRecipe:
    """RepLKNet-31B with UperNet on Cityscapes at 769² (Sec. 4.4): Table 7."""
    return upernet_ade20k_160k().with_overrides(
        name="upernet_cityscapes_80k",
        data="cityscapes",  # paper: "80K-iteration training schedule for Cityscapes"
        num_classes=19,
        iterations=80_000,
        crop=(769, 769),  # release
        resize=(1024, 2048),  # release: the images' own size
        align_corners=True,  # release
        count_size=(1024, 2048),  # paper: "with 1024×2048 inputs"
    )
