"""What scenes show: shapes with a class, drawn at any size, other ones for training than for the test.

How far a large kernel can matter depends on how deep pixels lie: the deepest of a digit, whose strokes are thin, lies
0.09 of its square's side from the outline, the deepest of a lobed blob 0.31 (medians of 500, measured by the tests).
"""

from typing import Literal, Protocol

import numpy as np
from PIL import Image

from replk_lightning.data.mnist5k import DIGITS, split, table

ShapeName = Literal["digits", "lobes"]

LOBES = range(2, 10)
"""How many lobes a blob has; a blob's class is its number's place here."""

SWELL = (0.12, 0.24)
"""Smallest and largest height of a lobe over a blob's mean radius."""

BLOBS = {False: 16000, True: 4000}
"""How many to train and, True, to test on, equally many of each class."""


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
        drawn = np.asarray(Image.fromarray(self.pixels[n]).resize((side, side), Image.Resampling.BICUBIC)) / 255
        ink: np.ndarray = np.clip(2 * drawn - 0.5, 0, 1)
        return ink


class Lobes:
    """Solid blobs of two to nine equal lobes, turned and swollen at random: radius 1 + a cos(k θ + φ) over angle θ."""

    names = tuple(f"{lobes} lobes" for lobes in LOBES)

    def __init__(self, test: bool) -> None:
        count = BLOBS[test]
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


SHAPES: dict[ShapeName, type[Digits] | type[Lobes]] = {"digits": Digits, "lobes": Lobes}
"""Families of shapes by name."""
