"""Encoded images that may be damaged: read what can be read, name what cannot, never stop a long run for it."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset

from replk_lightning.data.augment import Transform
from replk_lightning.data.base import DataError

COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Formats that a file is looked at for first, whatever its name."""

NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows and leaves to other programs."""

MOST_UNEQUAL = 100
"""How many times longer than the other a side may be."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture of each EXIF orientation upright."""

ON_ITS_SIDE = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]

EIGHT_BITS, SIXTEEN_BITS = 255, 65_535

IN_PLANES, WHITE_IS_ZERO = 2, 0
"""Of a TIFF's planar configuration and photometric interpretation."""


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


def formats() -> list[str]:
    """What a file may be: all that Pillow reads by itself, and what plugins have been registered for, as HEIC."""
    Image.init()
    return [name for name in dict.fromkeys((*COMMON, *Image.OPEN)) if name not in NOT_READ]


def endings() -> frozenset[str]:
    """How names of such files end, in lower case and with the dot."""
    known = set(formats())
    found = {ending for ending, name in Image.registered_extensions().items() if name in known}
    return frozenset(found | {".mpo"})  # several JPEGs in one, which Pillow opens as a JPEG


def decode_rgb(content: str | bytes) -> Image.Image:
    """Decode a file (its path, or the bytes in it) of any colour mode to 8-bit RGB, upright.

    Transparency is dropped. Raises UnreadableImageError as `decode` does, and for wide numbers of no known range.
    """
    return decode(content, rgb=True)


def decode(content: str | bytes, rgb: bool = False) -> Image.Image:
    """The first picture in an image file, or in the bytes of one, upright as its EXIF orientation says.

    Raises UnreadableImageError for damage, for what is no photograph's format or no file, and for declared sizes that
    would fill the memory: more pixels than Pillow warns of, or sides so unequal that resizing the shorter one would.
    """
    with _opened(content) as image:
        image.load()
        turn = _turn(image)
        found = _to_rgb(image) if rgb else image.copy()
        return found if turn is None else found.transpose(turn)


def upright_size(path: str) -> tuple[int, int]:
    """Width and height of the picture that `decode` gives, without decoding it. Raises UnreadableImageError."""
    with _opened(path) as image:
        on_its_side = image.format != "TIFF" and _turn(image) in ON_ITS_SIDE  # a TIFF says its size upright
        return image.size[::-1] if on_its_side else image.size


@contextmanager
def _opened(content: str | bytes) -> Iterator[Image.Image]:
    try:
        if isinstance(content, str) and not stat.S_ISREG(os.stat(content).st_mode):
            raise ValueError("not a file")  # a pipe would be waited for
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content if isinstance(content, str) else io.BytesIO(content), formats=formats()) as image:
                if max(image.size) > MOST_UNEQUAL * min(image.size):
                    raise ValueError(f"{image.width}×{image.height} pixels")
                _require_whole_planes(image)
                yield image
    except Exception as error:  # decoders meet damage with OSError, SyntaxError, struct.error, zlib.error and more
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _require_whole_planes(image: Image.Image) -> None:
    """Raises ValueError for TIFFs of 16-bit colours in separate planes, of which Pillow gives other pixels."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(ExifTags.Base.BitsPerSample, (1,)))
    if len(image.getbands()) > 1 and bits > 8 and tags.get(ExifTags.Base.PlanarConfiguration) == IN_PLANES:
        raise ValueError(f"a TIFF of {bits} bits in separate planes: save it as 8 bits")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets an image upright; a TIFF has been turned already once it is loaded."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, which says nothing of pixels that are whole
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # `convert` would clip wide numbers at 255 instead of scaling them
        values = np.asarray(image)
        white = _white(image, values)
        if (
            image.mode.startswith("I;")
            and getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO
        ):
            values = white - values
        image = Image.fromarray(np.rint(values / (white / EIGHT_BITS)).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # Pillow's advice for palettes with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _white(image: Image.Image, values: np.ndarray) -> int:
    """The number that stands for white in a grey image of 16 bits, 32 bits or floats.

    16 bits say it themselves. Of wider ones no format says it: the smallest usual white that all of a picture's values
    keep to is taken (1 or 255 of floats, 255 or 65,535 of 32 bits). Raises ValueError where there is none, and where
    16 bits hold so small numbers that all is black.
    """
    low, high = values.min().item(), values.max().item()  # Python's numbers, which do not overflow
    if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))  # TIFFs may have 12
        white: int = 2 ** max(bits) - 1
        if 0 < high * 256 < white:
            raise ValueError(f"its values reach {high} of {white}, which is black: save it as 8 bits")
        return white
    for white in (1, EIGHT_BITS) if image.mode == "F" else (EIGHT_BITS, SIXTEEN_BITS):
        if low >= 0 and high <= white:  # false for NaN
            return white
    raise ValueError(f"its values reach from {low:g} to {high:g}, and no format says what is white: save it as 8 bits")


def warn_unreadable(name: str, reason: UnreadableImageError, replaced: bool = False) -> None:
    """Say which image is left out, or replaced by the next, and why."""
    instead = "; the next one takes its place" if replaced else ""
    warnings.warn(f"skipped unreadable image {name} ({reason}){instead}", stacklevel=2)


class ReadableSamples(Dataset[Any]):
    """Samples of which some may be damaged, by number.

    In training an unreadable sample is replaced by the next readable one, so lengths and batches stay as they are. In
    evaluation it is None, which `base.EvaluationLoader` leaves out: no other picture counts twice. Either way it is
    warned about once, whichever worker or epoch meets it.
    """

    def __init__(self, count: int, train: bool) -> None:
        self.train = train
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
        for offset in range(len(self) if self.train else 1):
            position = (index + offset) % len(self)
            try:
                return self.read(position)
            except UnreadableImageError as reason:
                if not self._warned[position]:
                    self._warned[position] = True
                    warn_unreadable(self.name(position), reason, replaced=self.train)
        if not self.train:
            return None
        raise DataError(f"None of the {len(self)} images can be read; the first is {self.name(0)}.")


class DecodedImages(ReadableSamples):
    """`(image, label)` of every sample: float32 `(3, H, W)` after the transform, and its label."""

    def __init__(self, samples: Samples, transform: Transform, train: bool) -> None:
        super().__init__(len(samples), train)
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
