"""What scenes show: shapes with a class, drawn at any size, other ones for training than for the test.

How far a large kernel can matter depends on how deep pixels lie: the deepest of a digit, whose strokes are thin, lies
0.07 of its square's side from the outline, the deepest of a garment 0.27, of a lobed blob 0.34 (medians of 200 of the
test's at 84 pixels, measured by the tests).
"""

from typing import Literal, Protocol

import numpy as np
from PIL import Image
from scipy import ndimage

from replk_lightning.data.fashion_mnist import GARMENTS, garments
from replk_lightning.data.mnist5k import DIGITS, split, table

ShapeName = Literal["digits", "lobes", "garments"]

LOBES = range(2, 10)
"""How many lobes a blob has; a blob's class is its number's place here."""

SWELL = (0.12, 0.24)
"""Smallest and largest height of a lobe over a blob's mean radius."""

FAINT = 8
"""Up to this a garment's pixel, of 255, is what lies behind it: at 0 a third of the garments would trail specks."""

SOLID = {False: 12000, True: 4000}
"""How many blobs, and how many garments, to train and, True, to test on, equally many of each class."""


class Shapes(Protocol):
    """One split of a family of shapes: `classes` int64 (N,), the place of each in `names`."""

    names: tuple[str, ...]
    classes: np.ndarray

    def draw(self, n: int, side: int) -> np.ndarray:
        """Ink of shape `n`, float64 (side, side) in [0, 1]."""
        ...


class Digits:
    """MNIST-5k's handwritten digits, 4,000 to train and 1,000 to test on (see mnist5k.py)."""

    names = DIGITS

    def __init__(self, test: bool) -> None:
        pixels, digits = table()
        chosen = split(digits)[test]
        self.pixels, self.classes = pixels[chosen], digits[chosen]

    def draw(self, n: int, side: int) -> np.ndarray:
        """Resized, with sharper edges and opaque strokes."""
        return _resized(self.pixels[n], side)


class Lobes:
    """Solid blobs of two to nine equal lobes, turned and swollen at random: radius 1 + a cos(k θ + φ) over angle θ."""

    names = tuple(f"{lobes} lobes" for lobes in LOBES)

    def __init__(self, test: bool) -> None:
        count = SOLID[test]
        random = np.random.RandomState([1, test])  # numpy promises that its numbers never change
        self.classes = np.arange(count) % len(LOBES)
        self.swells, self.turns = random.uniform(*SWELL, count), random.uniform(0, 2 * np.pi, count)

    def draw(self, n: int, side: int) -> np.ndarray:
        """Its outline touches the square's sides or nearly so, and is a pixel wide."""
        centred = np.arange(side) - (side - 1) / 2
        x, y = np.meshgrid(centred, centred)
        swell, lobes = self.swells[n], LOBES[self.classes[n]]
        radius = (side / 2 - 0.5) / (1 + swell) * (1 + swell * np.cos(lobes * np.arctan2(y, x) + self.turns[n]))
        ink: np.ndarray = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)
        return ink


class Garments:
    """Silhouettes of Fashion-MNIST's garments, its training ones to train and its test ones to test on.

    An outline does not tell all ten classes apart: shirts, pullovers and coats share theirs, and stay three classes.

    Raises DataError where Fashion-MNIST is not at hand (see fashion_mnist.py).
    """

    names = GARMENTS

    def __init__(self, test: bool) -> None:
        images, labels = garments("test" if test else "train")
        random, each = np.random.RandomState([2, test]), SOLID[test] // len(GARMENTS)
        chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(len(GARMENTS))]
        places = np.stack(chosen, axis=1).ravel()  # one of each class after another
        self.pixels, self.classes = images[places, 0].numpy(), labels[places].numpy()

    def draw(self, n: int, side: int) -> np.ndarray:
        """Filled and resized, with sharper edges."""
        return _resized(silhouette(self.pixels[n]), side)


def silhouette(pixels: np.ndarray) -> np.ndarray:
    """The largest piece of a garment (h, w), its holes filled: uint8, 255 in it and 0 elsewhere."""
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(pixels > FAINT))
    largest = 1 + np.bincount(pieces.ravel(), minlength=2)[1:].argmax()
    return np.where(pieces == largest, 255, 0).astype(np.uint8)


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    drawn = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)) / 255
    ink: np.ndarray = np.clip(2 * drawn - 0.5, 0, 1)
    return ink


SHAPES: dict[ShapeName, type[Digits] | type[Lobes] | type[Garments]] = {
    "digits": Digits,
    "lobes": Lobes,
    "garments": Garments,
}
"""Families of shapes by name."""
