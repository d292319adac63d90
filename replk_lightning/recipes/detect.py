"""Object detection as Sec. 4.5 trains it, one function a training recipe, every field beside the line it comes from.

`paper` after a value means Sec. 4.5 says it ("2x (24-epoch) or 3x (36-epoch) training schedules and the default
configurations in MMDetection"), `default` that it is such a default, `release` that it is in the authors' published
settings; `here` marks the few choices that none of them makes. Appendix A says nothing about detection.
"""

from dataclasses import dataclass
from typing import Literal

from replk_lightning.recipes.base import HALF, Recipe


@dataclass(frozen=True, kw_only=True)
class DetectRecipe(Recipe):
    """A detector's training, and the sizes of what stands on the backbone.

    The learning rate rises linearly from `warmup_ratio` to 1 in `warmup_steps` steps (or stays at `warmup_ratio`, if
    `warmup` is constant) and is divided by ten at each epoch of `milestones`. A training picture's short side becomes
    one of `train_sizes`, drawn for each picture, a tested one's `test_size`, the long side at most `max_size`;
    `random_crop` first cuts every second photograph out of a smaller version of itself. `channels` are those of the
    pyramid and of all convolutions on it, `head_convs` their number in each head, `fc` the width of a box head's
    linear layer. `proposals` go from the first stage to the second, in training and in testing, of which `rois` are
    drawn for each box head's loss; a picture has `detections` at most. `clip_norm` bounds the gradient's
    norm; `num_classes` is COCO's.
    """

    head: Literal["fcos", "cascade_mask_rcnn"]
    num_classes: int = 80
    milestones: tuple[int, ...]
    warmup: Literal["constant", "linear"] = "linear"
    warmup_steps: int = 500
    warmup_ratio: float = 0.001
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    train_sizes: tuple[int, ...]
    test_size: int = 800
    max_size: int = 1333
    random_crop: bool = False
    channels: int = 256
    head_convs: int = 4
    fc: int = 1024
    proposals: tuple[int, int] = (2000, 1000)
    rois: int = 512
    detections: int = 100


def fcos_2x() -> DetectRecipe:
    """FCOS on RepLKNet-31B pre-trained on ImageNet-1K (Sec. 4.5): Table 9's first row."""
    return DetectRecipe(
        name="fcos_2x",
        head="fcos",  # paper: "the backbone of FCOS"
        starts_from="replknet_300ep",  # here: the paper's best RepLKNet-31B on ImageNet-1K
        new_head=True,
        gpus=8,  # default
        batch_size=8 * 2,  # release: 2 images a GPU
        epochs=24,  # paper: "2x (24-epoch)"
        milestones=(16, 22),  # release
        optimizer="adamw",  # release
        lr=2e-4,  # release
        weight_decay=0.05,  # release: none on norms; here: none on biases either, as in classification
        clip_norm=35.0,  # release
        warmup="constant",  # release
        warmup_steps=500,  # release
        warmup_ratio=1 / 3,  # release
        drop_path=0.5,  # release
        train_sizes=(640, 800),  # release
        test_size=800,  # paper: "computed with 1280×800 inputs"
        max_size=1333,  # release
        resolution=800,
    )


def cascade_mask_rcnn_3x() -> DetectRecipe:
    """Cascade Mask R-CNN on RepLKNet-31B pre-trained on ImageNet-1K (Sec. 4.5): Table 9."""
    return DetectRecipe(
        name="cascade_mask_rcnn_3x",
        head="cascade_mask_rcnn",  # paper: "and Cascade Mask R-CNN"
        starts_from="replknet_300ep",  # here: the paper's best RepLKNet-31B on ImageNet-1K
        new_head=True,
        gpus=16,  # here: so that the total is MMDetection's default of 16; release: 1 image a GPU
        batch_size=16 * 1,
        epochs=36,  # paper: "3x (36-epoch)"
        milestones=(27, 33),  # release
        optimizer="adamw",  # release
        lr=4e-4,  # release
        weight_decay=0.05,  # release: none on norms; here: none on biases either, as in classification
        warmup="linear",  # default
        warmup_steps=500,  # default
        warmup_ratio=0.001,  # default
        drop_path=0.6,  # release
        train_sizes=tuple(range(480, 801, 32)),  # release
        random_crop=True,  # release
        test_size=800,  # paper: "computed with 1280×800 inputs"
        max_size=1333,  # release
        resolution=800,
    )


def cascade_mask_rcnn_3x_22k() -> DetectRecipe:
    """Cascade Mask R-CNN on RepLKNet-31B pre-trained on ImageNet-22K (Sec. 4.5): Table 9, marked ‡."""
    return cascade_mask_rcnn_3x().with_overrides(
        name="cascade_mask_rcnn_3x_22k",
        starts_from="replknet_pretrain_22k",  # paper: "ImageNet-22K pretraining"
        drop_path=0.4,  # release
    )


def cascade_mask_rcnn_3x_31l() -> DetectRecipe:
    """Cascade Mask R-CNN on RepLKNet-31L pre-trained on ImageNet-22K (Sec. 4.5): Table 9."""
    return cascade_mask_rcnn_3x_22k().with_overrides(
        name="cascade_mask_rcnn_3x_31l",
        epochs=36,  # paper: "3x (36-epoch)"
        drop_path=0.7,  # release
    )


def cascade_mask_rcnn_3x_xl() -> DetectRecipe:
    """Cascade Mask R-CNN on RepLKNet-XL pre-trained on 73 million images (Sec. 4.5): Table 9's last row."""
    return cascade_mask_rcnn_3x().with_overrides(
        name="cascade_mask_rcnn_3x_xl",
        starts_from="xl_semi_supervised",  # paper: "pretrained with extra data"
        gpus=4,  # here: the total stays; release: 4 images a GPU
        drop_path=0.5,  # release
        mean=HALF,  # release
        std=HALF,
    )
