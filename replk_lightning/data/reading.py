"""Encoded images that may be damaged: read what can be read, name what cannot, never stop a long run for it."""

import io
import os
import stat
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .augment import Transform
from .base import DataError

T = TypeVar("T")

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name; Pillow knows more, some of which it leaves to other programs."""

MOST_UNEQUAL = 100
"""How many times longer than the other a side may be."""


class Encoded(NamedTuple):
    """One image file: what to call it, where it is or what it holds, and its class."""

    name: str
    content: str | bytes
    label: int


class Samples(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Encoded: ...


class UnreadableImageError(Exception):
    """An image could not be decoded."""


def decode_rgb(content: str | bytes) -> Image.Image:
    """Decode a file (its path, or the bytes in it) of any colour mode to 8-bit RGB. Raises UnreadableImageError."""
    return decode(content, _to_rgb)


def decode(content: str | bytes, finish: Callable[[Image.Image], T]) -> T:
    """What `finish` makes of an image file, or of the bytes in it, before it is closed.

    Raises UnreadableImageError for damage, for what is no photograph's format or no file, and for declared sizes that
    would fill the memory: more pixels than Pillow warns of, or sides so unequal that resizing the shorter one would.
    """
    try:
        if isinstance(content, str) and not stat.S_ISREG(os.stat(content).st_mode):
            raise ValueError("not a file")  # a pipe would be waited for
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content if isinstance(content, str) else io.BytesIO(content), formats=FORMATS) as image:
                if max(image.size) > MOST_UNEQUAL * min(image.size):
                    raise ValueError(f"{image.width}×{image.height} pixels")
                return finish(image)
    except Exception as error:  # decoders meet damage with OSError, SyntaxError, struct.error, zlib.error and more
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: `convert` would clip it at 255 instead of scaling
        image = Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # Pillow's advice for palettes with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def warn_unreadable(name: str, reason: UnreadableImageError) -> None:
    """Say which image is left out, and why."""
    warnings.warn(f"skipped unreadable image {name} ({reason})", stacklevel=2)


class ReadableSamples(Dataset[Any]):
    """Samples of which some may be damaged, by number.

    An unreadable sample is replaced by the next readable one, so lengths and batches stay as they are; it is warned
    about once, whichever worker or epoch meets it.
    """

    def __init__(self, count: int) -> None:
        self._warned = torch.zeros(count, dtype=torch.bool).share_memory_()  # seen by all worker processes

    def name(self, index: int) -> str:
        """What to call a sample."""
        raise NotImplementedError

    def read(self, index: int) -> Any:
        """Read a sample. Raises UnreadableImageError."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._warned)

    def __getitem__(self, index: int) -> Any:
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            try:
                return self.read(position)
            except UnreadableImageError as reason:
                if not self._warned[position]:
                    self._warned[position] = True
                    warn_unreadable(self.name(position), reason)
        raise DataError(f"None of the {len(self)} images can be read; the first is {self.name(0)}.")


class DecodedImages(ReadableSamples):
    """`(image, label)` of every sample: float32 `(3, H, W)` after the transform, and its label."""

    def __init__(self, samples: Samples, transform: Transform) -> None:
        super().__init__(len(samples))
        self.samples = samples
        self.transform = transform

    def name(self, index: int) -> str:
        """The sample's own."""
        return self.samples[index].name

    def read(self, index: int) -> tuple[Tensor, Any]:
        """Decode and transform one image."""
        sample = self.samples[index]
        return self.finish(decode_rgb(sample.content), sample)

    def finish(self, image: Image.Image, sample: Encoded) -> tuple[Tensor, Any]:
        """What the set gives for a decoded image."""
        return self.transform(image), sample.label
