"""How deep pixels lie in digits, blobs and garments, and what a blob's class is."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from replk_lightning.data.fashion_mnist import DEBIAN
from replk_lightning.data.shapes import LOBES, SHAPES, SOLID, Lobes

SIDE = 84
GARMENTS = pytest.param(
    "garments",
    0.27,
    marks=pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"),
)


@pytest.mark.parametrize(("name", "depth"), [("digits", 0.07), ("lobes", 0.34), GARMENTS])
def test_the_deepest_pixel_lies_as_deep_as_is_said(name, depth):
    shapes = SHAPES[name](test=True)
    chosen = np.random.RandomState(0).choice(len(shapes.classes), 200, replace=False)
    inside = (np.pad(shapes.draw(n, SIDE) >= 0.5, 1) for n in chosen)
    assert np.median([distance_transform_edt(mask).max() for mask in inside]) / SIDE == pytest.approx(depth, abs=0.006)


@pytest.mark.parametrize("test", [False, True])
def test_blobs_are_balanced_and_have_as_many_lobes_as_their_class_says(test):
    blobs = Lobes(test)
    assert np.bincount(blobs.classes).tolist() == [SOLID[test] // len(LOBES)] * len(LOBES)
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    for n in range(16):
        mask = blobs.draw(n, SIDE) >= 0.5
        radii = np.arange(0, SIDE / 2, 0.25)[:, None]
        y, x = ((SIDE - 1) / 2 + radii * wave(angles) for wave in (np.sin, np.cos))
        outline = mask[y.round().astype(int), x.round().astype(int)].sum(0)  # a radius an angle
        strongest = np.abs(np.fft.rfft(outline))[1:].argmax() + 1
        assert f"{strongest} lobes" == blobs.names[blobs.classes[n]]


def test_blobs_to_train_and_to_test_on_differ():
    train, test = Lobes(False), Lobes(True)
    assert not set(train.turns) & set(test.turns)
