"""Scenes: shapes filled with and laid over real photographs, composed from a seed.

The shapes are digits, solid blobs or garments (see shapes.py), the photographs those that ship inside scikit-image:
nothing is downloaded, but for garments. Training and test scenes share neither a shape nor a pixel of a photograph: the
right third of every photograph is the test's. Each crop is brought to one mean and one deviation, so that neither
brightness nor contrast tells a texture's class. What lies behind digits is darker than they, and another photograph. In
solid scenes, of blobs or of garments, a pixel far from every outline looks the same inside and outside: what lies
behind is the darker in one half of them and the brighter in the other, and both sides show the same photographs.

Shapes: N scenes, H = W = size, M objects at most, h and w of a crop.
"""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from replk_lightning.data.base import ImageData, Splits, fingerprint
from replk_lightning.data.shapes import SHAPES, ShapeName, Shapes
from replk_lightning.data.tensor_images import TensorImages, unchanged

Cues = Literal["independent", "agree", "conflict"]
Variant = Literal["plain", "solid", "garments", "cue-conflict"]

TEXTURES = (
    "brick", "grass", "gravel", "hubble_deep_field", "immunohistochemistry",
    "coins", "page", "chelsea", "retina", "moon",
)  # fmt: skip
"""scikit-image's names of the ten pictures that fill shapes; a texture's class is its place here."""

GROUNDS = ("astronaut", "camera", "clock", "coffee", "rocket")
"""Photographs that lie behind digits."""

TRAIN_SHARE = 2 / 3
"""Share of each photograph's width that training crops come from."""

CROP = (96, 160)
"""Smallest and largest side of a crop, in pixels of the photograph."""

SHAPE = (0.75, 1.0)
"""Smallest and largest side of a lone shape's square over that of the scene."""

DENSE = (0.5, 0.8)
"""Likewise of a solid shape in a scene that is segmented: its place tells less of where it is."""

OBJECTS = 3
"""Digits in a scene of several, at most."""

NAMES: dict[ShapeName, str] = {"digits": "scenes", "lobes": "scenes-solid", "garments": "scenes-garments"}
"""What data sets of scenes are called by what is in them."""

TRAIN_SCENES, TEST_SCENES = 12000, 4000
"""How many there are; each digit to train on stands in three, each to test on in four."""

GROUND_LEVEL, FIGURE_LEVEL, DEVIATION = 0.3, 0.7, 0.12
"""Means of what lies behind and of what fills a shape, and the deviation of both, before clipping to [0, 1]."""

SOLID_DEVIATION = 0.07
"""Deviation in solid scenes; at 0.12 nets see nothing in them for up to half of a training, some longer than others."""

CUE_DEVIATION = 0.05
"""Deviation where the texture is a cue that lies all over the scene; chosen on RepLKNet-3, which at 0.12 decides by
texture alone."""

MEAN, STD = 0.35, 0.165
"""Of the pixels of scenes of digits, one number for all channels; taken for solid scenes too."""

VERSION = 2
"""Part of the cache's key: raise it when a scene changes."""


class Composed(NamedTuple):
    """One split.

    Attributes:
        images: uint8 (N, 3, H, W).
        instances: uint8 (N, H, W): 0 behind, m + 1 where object m is seen.
        classes: int64 (N, M): the shapes'; -1 where a scene has fewer objects.
        textures: int64 (N, M): what they are filled with; -1 likewise.
        boxes: int64 (N, M, 4): left, top, right, bottom in pixels, the last two exclusive; -1 likewise.
    """

    images: Tensor
    instances: Tensor
    classes: Tensor
    textures: Tensor
    boxes: Tensor


def normalise(images: Tensor) -> Tensor:
    """uint8 images of any shape → float32 of about mean 0 and deviation 1, as `Scenes` gives them."""
    return (images.float() / 255 - MEAN) / STD


class SceneImages(TensorImages):
    """uint8 images held as they are and normalised batch by batch: a quarter of the memory."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = super().__getitems__(indices)
        return normalise(images), labels


class Scenes(ImageData):
    """12,000 scenes to train and 4,000 to test on, each of one shape, whose class is the label.

    Args:
        variant: `plain`: digits in colour, any texture in any digit. `solid`: blobs of two to nine lobes, likewise.
            `garments`: garments of Fashion-MNIST, which must be at hand (see fashion_mnist.py), as `solid`.
            `cue-conflict`: grey digits; in training the texture's class is the digit's, in the test never, and the
            label is the digit (the shape).
        augment: shift training scenes by up to an eighth of their size; solid ones stay.

    Images are (3, image_size, image_size).
    """

    collate = staticmethod(unchanged)
    mean, std = MEAN, STD

    def __init__(
        self,
        variant: Variant = "plain",
        image_size: int = 96,
        batch_size: int = 64,
        augment: bool = True,
        num_workers: int = 0,
    ) -> None:
        name = "scenes" if variant == "plain" else f"scenes-{variant}"
        super().__init__(name, in_chans=3, image_size=image_size, batch_size=batch_size, num_workers=num_workers)
        self.variant = variant
        self.augment = augment

    def load(self) -> Splits:
        """Compose both splits, or take them from the cache."""
        solid: dict[Variant, ShapeName] = {"solid": "lobes", "garments": "garments"}
        shapes = solid.get(self.variant, "digits")
        cues: tuple[Cues, Cues] = ("agree", "conflict") if self.variant == "cue-conflict" else ("independent",) * 2
        train = compose("train", self.image_size, cues[0], shapes=shapes)
        test = compose("test", self.image_size, cues[1], shapes=shapes)
        parts = [tensor.numpy().tobytes() for tensor in (train.images, train.classes, test.images, test.classes)]
        shift = largest_shift(shapes, self.image_size) if self.augment else 0
        return Splits(
            SceneImages(train.images, train.classes[:, 0], shift, background=round(255 * GROUND_LEVEL)),
            SceneImages(test.images, test.classes[:, 0]),
            num_classes=len(SHAPES[shapes].names),
            train_size=len(train.images),
            fingerprint=partial(fingerprint, parts),
            class_names=SHAPES[shapes].names,
        )


def compose(
    split_name: Literal["train", "test"],
    size: int = 96,
    cues: Cues = "independent",
    objects: int = 1,
    seed: int = 0,
    shapes: ShapeName = "digits",
    count: int | None = None,
    sides: tuple[float, float] = SHAPE,
) -> Composed:
    """One split of scenes, the same on every machine up to rounding in Pillow; kept on disk under the cache folder.

    Args:
        size: H = W in pixels.
        cues: whether the texture's class is drawn on its own, is the digit's, or is never the digit's (each of the
            nine others equally often). In the last two, grey, the first digit's texture also lies behind it.
        objects: M; beyond one, shapes are smaller, do not overlap, and those that find no room are left out.
        seed: of everything but the split.
        shapes: a key of SHAPES.
        count: N, the first of all scenes; None for all.
        sides: smallest and largest side of a lone shape's square over that of the scene.
    """
    what = f"{split_name}-{size}-{cues}-{objects}-{seed}-{shapes}-{count}-{sides[0]}-{sides[1]}"
    key = f"{what}-v{VERSION}-{_photographs_fingerprint()}"
    path = cache_folder() / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file) as kept:  # numpy leaves a damaged file open
            return Composed(*(torch.from_numpy(kept[name]) for name in Composed._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or cut short
        composed = _Composer(split_name, size, cues, objects, seed, shapes, sides).compose(count)
    _keep(composed, path)
    return composed


def compose_dense(split_name: Literal["train", "test"], size: int, shapes: ShapeName, count: int) -> Composed:
    """Scenes to segment or to find objects in: up to three digits, or one solid shape of DENSE size anywhere."""
    if shapes == "digits":
        return compose(split_name, size, objects=OBJECTS, count=count)
    return compose(split_name, size, shapes=shapes, count=count, sides=DENSE)


def largest_shift(shapes: ShapeName, size: int) -> int:
    """By how many pixels scenes are shifted in training at most: solid ones stay, as their ground has no one level."""
    return size // 8 if shapes == "digits" else 0


def cache_folder() -> Path:
    """Where composed scenes are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "replk-lightning" / "scenes"


def photograph(name: str) -> np.ndarray:
    """A picture that ships inside scikit-image: uint8 (h, w, 3), grey ones with three equal channels."""
    from skimage import data

    pixels = getattr(data, name)()
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


class _Composer:
    """Draws scenes one after another from one generator."""

    def __init__(
        self,
        split_name: str,
        size: int,
        cues: Cues,
        objects: int,
        seed: int,
        shapes: ShapeName,
        sides: tuple[float, float],
    ) -> None:
        test = split_name == "test"
        self.shapes: Shapes = SHAPES[shapes](test)
        self.classes = self.shapes.classes
        self.count = TEST_SCENES if test else TRAIN_SCENES
        self.textures, self.grounds = ([_region(name, test) for name in names] for names in (TEXTURES, GROUNDS))
        self.size, self.cues, self.objects, self.sides = size, cues, objects, sides
        self.solid = shapes != "digits"
        self.random = np.random.RandomState([seed, test])

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of each shape among those of its class, int64 (N,); only cues in conflict ask for it."""
        return np.array([np.sum(self.classes[:n] == shape) for n, shape in enumerate(self.classes)])

    def compose(self, count: int | None) -> Composed:
        """The first `count` scenes; scene n has shape n first, or n - N beyond the last of N."""
        count, size, most = count or self.count, self.size, self.objects
        composed = Composed(
            torch.empty(count, 3, size, size, dtype=torch.uint8),
            torch.zeros(count, size, size, dtype=torch.uint8),
            torch.full((count, most), -1),
            torch.full((count, most), -1),
            torch.full((count, most, 4), -1),
        )
        for n in range(count):
            self._compose_one(n, composed)
        return composed

    def _compose_one(self, n: int, composed: Composed) -> None:
        first, lap = n % len(self.classes), n // len(self.classes)
        behind, before = GROUND_LEVEL, FIGURE_LEVEL
        if self.solid and self.random.randint(2):
            behind, before = before, behind
        scene = self._crop(self._ground(first, lap), behind)
        objects = 0
        for shape in (first, *self.random.randint(len(self.classes), size=self.objects - 1)):
            ink = self._place(shape)
            seen = torch.from_numpy(ink >= min(0.5, ink.max()))  # a tiny digit may be faint all over
            if composed.instances[n][seen].any():
                continue
            texture = self._texture(shape, lap)
            scene += ink[..., None] * (self._crop(self.textures[texture], before) - scene)
            composed.instances[n][seen] = objects + 1
            composed.classes[n, objects], composed.textures[n, objects] = int(self.classes[shape]), texture
            composed.boxes[n, objects] = box_of(seen)
            objects += 1
        pixels = np.clip(255 * scene, 0, 255).round().astype(np.uint8)
        composed.images[n] = torch.from_numpy(pixels).permute(2, 0, 1)

    def _ground(self, shape: int, lap: int) -> np.ndarray:
        """What lies behind: a photograph, or with cues the shape's own texture, as style transfer would paint it."""
        if self.cues == "independent":
            grounds = self.textures if self.solid else self.grounds
            return grounds[self.random.randint(len(grounds))]
        return self.textures[self._texture(shape, lap)]

    def _texture(self, shape: int, lap: int) -> int:
        if self.cues == "independent":
            return self.random.randint(10)
        other = 0 if self.cues == "agree" else 1 + (self.rank[shape] + lap) % 9
        return int(self.classes[shape] + other) % 10

    def _crop(self, region: np.ndarray, level: float) -> np.ndarray:
        """A random square of `region`, float64 (H, W, 3) of mean `level` and deviation DEVIATION."""
        largest = min(CROP[1], *region.shape[:2])
        side = self.random.randint(min(CROP[0], largest), largest + 1)
        top, left = (self.random.randint(length - side + 1) for length in region.shape[:2])
        square = Image.fromarray(region[top : top + side, left : left + side])
        pixels = np.asarray(square.resize((self.size, self.size), Image.Resampling.BILINEAR)) / 255
        deviation = SOLID_DEVIATION if self.solid else DEVIATION
        if self.cues != "independent":  # colour would tell most textures apart by itself
            pixels, deviation = pixels.mean(axis=-1, keepdims=True).repeat(3, axis=-1), CUE_DEVIATION
        crop: np.ndarray = level + deviation * (pixels - pixels.mean()) / max(pixels.std(), 1 / 255)
        return crop

    def _place(self, shape: int) -> np.ndarray:
        """Ink of a shape somewhere in an empty scene, float64 (H, W) in [0, 1]."""
        low, high = (round(share * self.size / self.objects**0.5) for share in self.sides)
        side = self.random.randint(low, high + 1)
        top, left = self.random.randint(self.size - side + 1, size=2)
        ink = np.zeros((self.size, self.size))
        ink[top : top + side, left : left + side] = self.shapes.draw(shape, side)
        return ink


def box_of(mask: Tensor) -> Tensor:
    """Left, top, right and bottom (exclusive) of the true pixels of a mask (H, W) that has any; int64 (4,)."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten()


def _region(name: str, test: bool) -> np.ndarray:
    pixels = photograph(name)
    border = round(TRAIN_SHARE * pixels.shape[1])
    return pixels[:, border:] if test else pixels[:, :border]


@cache
def _photographs_fingerprint() -> str:
    return fingerprint(photograph(name).tobytes() for name in (*TEXTURES, *GROUNDS))


def _keep(composed: Composed, path: Path) -> None:
    """Write the cache's file, whole or not at all; a disk that cannot be written costs the next run some seconds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in composed._asdict().items()})
        os.replace(file.name, path)
    except OSError:
        return
