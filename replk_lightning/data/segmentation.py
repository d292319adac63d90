"""Images with a class for every pixel: what the segmentation sets share, and how their images are changed.

Shapes: H, W of an image as it was read; h, w of a crop. Classes are 0 … num_classes - 1; IGNORED marks pixels that
neither train nor count.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from replk_lightning.data.base import DataError, ImageData, Splits, fingerprint
from replk_lightning.data.decoding import ReadableSamples, UnreadableImageError, decode, decode_rgb

IGNORED = 255
MOST_OF_ONE_CLASS = 0.75
"""A crop of which one class takes up more is drawn anew, ten times at most (MMSegmentation's practice)."""

HUE = 18 / 180
"""How far a hue is turned at most, in full turns (MMSegmentation's 18 of OpenCV's 180)."""


@dataclass(frozen=True, kw_only=True)
class SegmentAugmentation:
    """How training images and labels are changed, and how all images are normalised.

    Sizes are (height, width); `resize` bounds the short and the long side of an image before `scales` apply. In
    evaluation its sides become multiples of `multiple`.
    """

    crop: tuple[int, int]
    resize: tuple[int, int]
    scales: tuple[float, float] = (0.5, 2.0)
    hflip: float = 0.5
    multiple: int = 1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def train(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (3, H, W) and (H, W) → float32 (3, h, w) and int64 (h, w): scaled, cropped, flipped, recoloured."""
        low, high = self.scales
        ratio = low + (high - low) * torch.rand(()).item()
        size = fit(image.shape[-2:], self.resize, ratio)
        pair = tv_tensors.Image(T.resize(image, size)), tv_tensors.Mask(resize_label(label, size))
        crop = v2.RandomCrop(self.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED})
        for _ in range(10):
            cropped = crop(*pair)
            if largest_share(cropped[1]) < MOST_OF_ONE_CLASS:
                break
        change = v2.Compose([v2.RandomHorizontalFlip(self.hflip), Recolouring(hue=(-HUE, HUE))])
        image, label = change(*cropped)
        return self.normalise(image), label.as_subclass(Tensor).long()

    def evaluate(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (3, H, W) and (H, W) → float32 (3, H', W') resized, and int64 (H, W) as it is."""
        size = [nearest(side, self.multiple) for side in fit(image.shape[-2:], self.resize, 1.0)]
        return self.normalise(T.resize(image, size)), label.long()

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) → float32."""
        return T.normalize(image.as_subclass(Tensor).float() / 255, list(self.mean), list(self.std))


class Recolouring(v2.RandomPhotometricDistort):
    """Brightness, contrast, saturation and hue, each with p = 1/2; unlike torchvision's, no channels are swapped."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """As torchvision draws them, but for the order of the channels."""
        return super().make_params(flat_inputs) | {"channel_permutation": None}


def fit(size: Sequence[int], bounds: tuple[int, int], ratio: float) -> list[int]:
    """The largest (height, width) of `size`'s shape whose short and long side keep within `ratio` times `bounds`."""
    short, long = (ratio * bound for bound in sorted(bounds))
    scale = min(long / max(size), short / min(size))
    return [max(1, round(side * scale)) for side in size]


def nearest(side: float, multiple: int) -> int:
    """The multiple of `multiple`, but not 0, that is closest to `side`."""
    return max(1, round(side / multiple)) * multiple


def resize_label(label: Tensor, size: list[int]) -> Tensor:
    """Nearest neighbours of a label (H, W)."""
    return T.resize(label[None], size, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]


def largest_share(label: Tensor) -> float:
    """Share of the most frequent class among the pixels that count."""
    counts = torch.bincount(label[label != IGNORED].flatten())
    return counts.max().item() / counts.sum().item() if len(counts) else 1.0


class Labelled(NamedTuple):
    """One image and its labels: what to call it, and where both are or the bytes in them."""

    name: str
    image: str | bytes
    label: str | bytes


class LabelledImages(ReadableSamples):
    """`(image, label)` of every sample after the transform; see reading.py for pairs that cannot be read.

    Args:
        samples: encoded images and labels by number.
        classes: uint8 (256,), the class of every value in a label's file.
        transform: uint8 (3, H, W) and (H, W) → float32 and int64.
        train: whether an unreadable pair is replaced by the next.
    """

    def __init__(
        self,
        samples: Sequence[Labelled],
        classes: np.ndarray,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        train: bool,
    ) -> None:
        super().__init__(len(samples), train)
        self.samples, self.classes, self.transform = samples, classes, transform

    def name(self, index: int) -> str:
        """The sample's own."""
        return self.samples[index].name

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode and transform one pair."""
        sample = self.samples[index]
        image = torch.from_numpy(np.array(decode_rgb(sample.image))).permute(2, 0, 1)
        label = torch.from_numpy(self.classes[decode_label(sample.label)])
        if image.shape[-2:] != label.shape:
            sizes = f"the image is {tuple(image.shape[-2:])}, its label {tuple(label.shape)}"
            raise UnreadableImageError(sizes)
        return self.transform(image, label)


def decode_label(content: str | bytes) -> np.ndarray:
    """A file of one channel, grey, by a palette or of one bit → its numbers, uint8 (H, W), upright as its picture.

    Raises UnreadableImageError.
    """
    return label_of(decode(content))


def label_of(image: Image.Image) -> np.ndarray:
    """The numbers in a decoded image of one channel, uint8 (H, W). Raises UnreadableImageError for any other."""
    values = np.asarray(image)
    if values.ndim != 2 or image.mode == "F" or values.min() < 0 or values.max() > 255:
        raise UnreadableImageError(f"a label has one channel of numbers up to 255, not {image.mode}")
    return values.astype(np.uint8)


class SegmentationData(ImageData):
    """Base of the sets with a class for every pixel.

    Training batches are float32 (N, 3, h, w) and int64 (N, h, w). Validation gives one image (1, 3, H', W') at a time,
    with its label (1, H, W) at the size that it was read.
    """

    @property
    def eval_batch_size(self) -> int:
        """One, as images have sizes of their own."""
        return 1


class LabelledFiles(SegmentationData):
    """Images and labels in files, found by a subclass.

    Args:
        name: for records.
        augmentation: sizes, changes and normalisation.
        batch_size: per device.

    Raises DataError for the augmentation of another task, or none.
    """

    classes: np.ndarray
    """uint8 (256,): the class of every value in a label's file."""
    names: tuple[str, ...] | None = None
    """What the classes are called, where they are called something."""
    class_count: int

    def __init__(self, name: str, augmentation: SegmentAugmentation, batch_size: int, num_workers: int) -> None:
        if not isinstance(augmentation, SegmentAugmentation):
            raise DataError(
                f"{name} needs a recipe of segmentation, which says its crops: upernet_cityscapes_80k or another."
            )
        size = max(augmentation.crop)
        super().__init__(name, in_chans=3, image_size=size, batch_size=batch_size, num_workers=num_workers)
        self.augmentation = augmentation

    def find(self, train: bool) -> Sequence[Labelled]:
        """One split's samples, in a fixed order. Raises DataError."""
        raise NotImplementedError

    def load(self) -> Splits:
        """Find both splits; no image is opened yet."""
        train, val = self.find(train=True), self.find(train=False)
        return Splits(
            LabelledImages(train, self.classes, self.augmentation.train, train=True),
            LabelledImages(val, self.classes, self.augmentation.evaluate, train=False),
            num_classes=self.class_count,
            train_size=len(train),
            fingerprint=partial(fingerprint, names_and_sizes(train, val)),
            class_names=self.names,
        )


def names_and_sizes(*splits: Sequence[Labelled]) -> Iterator[bytes]:
    """Alternately a sample's name and the sizes of its two files in bytes."""
    for sample in chain(*splits):
        yield os.fsencode(sample.name)
        for content in (sample.image, sample.label):
            yield str(len(content) if isinstance(content, bytes) else Path(content).stat().st_size).encode()
