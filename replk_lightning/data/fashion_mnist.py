"""Fashion-MNIST: 70,000 garments of Zalando's catalogue, 28×28, grey (Xiao, Rasul and Vollgraf 2017).

Taken from a folder that is named, else from Debian's package `dataset-fashion-mnist`, else from the Hugging Face hub.
"""

import tempfile
import zlib
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import extract_archive

from replk_lightning.data.base import DataError, fingerprint
from replk_lightning.data.hub import open_splits
from replk_lightning.data.tensor_images import InMemoryData, Pictures

GARMENTS: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""What the authors call the classes."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist puts its four files."""

HUB = "zalando-datasets/fashion_mnist"
"""The set's name on the Hugging Face hub."""

FILES = {"train": "train", "test": "t10k"}
"""What the names of a split's two files begin with."""

PUBLISHED = {"train": "c8c7b344aaa66f57", "test": "aa2213e13a3a360e"}
"""Fingerprints of the authors' pictures and labels: MNIST and others of its kind have files of the same names."""


class FashionMnist(InMemoryData):
    """60,000 garments to train and 10,000 to test, equally many of each class.

    Args:
        root: a folder with the four files (see `from_folder`); None looks for Debian's, then on the hub.

    Images are `(1, image_size, image_size)`; any size but 28 is reached by bilinear interpolation.
    """

    names = GARMENTS

    def __init__(
        self,
        root: str | Path | None = None,
        image_size: int = 32,
        batch_size: int = 64,
        augment: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            "fashion-mnist",
            mean=0.2860,  # of the 60,000 training garments
            std=0.3530,
            augment=augment,
            in_chans=1,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.root = root

    def read(self) -> tuple[Pictures, Pictures]:
        """Both splits as the authors made them."""
        return garments("train", self.root), garments("test", self.root)


def garments(split: Literal["train", "test"], root: str | Path | None = None) -> Pictures:
    """One split, uint8 (N, 1, 28, 28) and int64 (N,), from where it is first found; warns if it is not the authors'.

    Raises:
        DataError: it is nowhere, or what is there is damaged or something else.
    """
    folder = Path(root) if root else DEBIAN if DEBIAN.is_dir() else None
    pictures = from_folder(folder, split) if folder else from_hub(split)
    if (found := fingerprint(tensor.numpy().tobytes() for tensor in pictures)) != PUBLISHED[split]:
        rank_zero_warn(f"What {folder or HUB} holds is not the {split} split of Fashion-MNIST as published ({found}).")
    return pictures


def from_folder(folder: Path, split: Literal["train", "test"]) -> Pictures:
    """From `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` or those of `t10k`, or from either with `.gz` after it.

    So are they called in Debian's package, by the authors, in keras's cache and in torchvision's `FashionMNIST/raw`.
    """
    images = _read_idx(folder, f"{FILES[split]}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{FILES[split]}-labels-idx1-ubyte")
    if images.shape[1:] != (28, 28) or not 0 < len(images) == len(labels) or labels.max() >= len(GARMENTS):
        raise DataError(
            f"{folder} does not hold Fashion-MNIST's {split} split: its images are {tuple(images.shape)} and not "
            f"(N, 28, 28), its labels {len(labels)} and not N, or there are more than {len(GARMENTS)} classes."
        )
    return Pictures(images[:, None], labels)


def _read_idx(folder: Path, name: str) -> Tensor:
    read = read_image_file if "images" in name else read_label_file
    try:
        if (folder / name).is_file():
            return read(str(folder / name))
        with tempfile.TemporaryDirectory() as unpacked:  # torchvision reads no gzipped files
            return read(str(extract_archive(folder / f"{name}.gz", unpacked)))
    except FileNotFoundError as error:
        four = ", ".join(f"{start}-{what}-ubyte" for start in FILES.values() for what in ("images-idx3", "labels-idx1"))
        raise DataError(f"{folder} has no {name}, gzipped or not: Fashion-MNIST needs {four} there.") from error
    except (OSError, EOFError, zlib.error, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{folder / name} cannot be read, fetch it again: {reason}.") from error


def from_hub(split: Literal["train", "test"]) -> Pictures:
    """From the hub, or from what has been downloaded before."""
    try:
        rows = open_splits(HUB, None, streaming=False)[split].with_format("numpy")
    except DataError as error:
        if not isinstance(error.__cause__, ConnectionError):
            raise
        raise DataError(
            "Fashion-MNIST is not on this machine and the Hugging Face hub not reachable: install Debian's package "
            "dataset-fashion-mnist, name a folder with its four files as fashion-mnist:PATH (scenes of garments take "
            f"none), or connect to the internet, where it is {HUB}."
        ) from error
    images, labels = torch.from_numpy(rows["image"][:]), torch.from_numpy(rows["label"][:])
    return Pictures(images[:, None], labels)
