"""Photographs to tensors: what Appendix A says about augmentation, handed to timm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How photographs become what a net is evaluated on; the words are timm's, and so is the transform.

    `size` is height and width in pixels; `mean` and `std` have one number a channel.
    """

    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"

    def transform(self) -> Transform:
        """Gives float32 (C, *size)."""
        transform: Transform = create_transform(
            self.size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return transform

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        height, width = self.size
        crop = f"crop {self.crop_pct:g} ({self.crop_mode})"
        return f"{height}×{width} pixels, {self.interpolation}, {crop}, mean {mean}, std {std}"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training photographs are changed, and how all are normalised.

    The default is the recipe of the MobileNetV2 rows: "we only use random cropping and left-right flipping"
    (Appendix A). RepLKNet's adds `auto_augment="rand-m9-mstd0.5-inc1"` and `random_erasing=0.25`.
    """

    hflip: float = 0.5
    """Probability of a left-right flip."""
    auto_augment: str | None = None
    """timm's name of a RandAugment, AutoAugment or AugMix policy."""
    random_erasing: float = 0.0
    """Probability that a rectangle is replaced by noise, pixel by pixel."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; timm leaves it out under `auto_augment`."""
    interpolation: str = "bilinear"
    """bilinear, bicubic, or random (of the two, for training only)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    random_crop: bool = False
    """For detection: every second training photograph is cut out of a smaller version of itself."""
    crop_pct: float | None = None
    """Side of the evaluated centre crop over that of the resized image; None is the paper's practice."""

    def train_transform(self, image_size: int) -> Transform:
        """Random crop of 8 to 100 % of the area, resized; then the rest. Gives float32 (3, image_size, image_size)."""
        transform: Transform = create_transform(
            image_size,
            is_training=True,
            hflip=self.hflip,
            auto_augment=self.auto_augment,
            color_jitter=self.color_jitter,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            re_prob=self.random_erasing,
            re_mode="pixel",
        )
        _allow_no_bits(transform)
        return transform

    def eval_transform(self, image_size: int) -> Transform:
        """Resize to size / 0.875 and crop the centre; from 384 on, resize the whole image. Same tensor as above."""
        return self.preprocessing(image_size).transform()

    def preprocessing(self, image_size: int) -> Preprocessing:
        """What `eval_transform` does."""
        whole = self.crop_pct is None and image_size >= 384
        return Preprocessing(
            size=(image_size, image_size),
            interpolation="bilinear" if self.interpolation == "random" else self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=1.0 if whole else self.crop_pct or 0.875,
            crop_mode="squash" if whole else "center",
        )


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """timm's operation, which at its strongest keeps 0 bits: a black image, and an error of Pillow 13."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits_to_keep, **options)
    return posterized


def _allow_no_bits(transform: Any) -> None:
    """Give a pipeline's RandAugment, AutoAugment or AugMix our `_posterize`, in place."""
    for step in getattr(transform, "transforms", ()):
        chosen = [*getattr(step, "ops", ()), *(op for each in getattr(step, "policy", ()) for op in each)]
        for operation in chosen:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
