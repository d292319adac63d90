"""Small sets held in memory as tensors: a batch is one indexing operation.

Shapes: N images of the set, B of a batch, C channels, H = W = image_size, s the largest shift in pixels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from replk_lightning.data.base import ImageData, Splits, fingerprint


class Pictures(NamedTuple):
    """One split as it was read: uint8 images `(N, C, h, w)` and int64 labels `(N,)`."""

    images: Tensor
    labels: Tensor


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images `(N, C, H, W)` and labels `(N,)`, with random translation by up to `shift` pixels.

    A batch comes from `__getitems__`, which torch's DataLoader prefers to `__getitem__` when it is there; any sampler
    works, the one that Lightning puts in for distributed runs too. Shifts are drawn from torch's global generator,
    and what moves in from outside is `background`.
    """

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0, background: float = 0.0) -> None:
        self.padded = F.pad(images, (shift,) * 4, value=background)  # N, C, H + 2s, W + 2s
        self.labels = labels
        self.shift = shift
        self.size = images.shape[-2:]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        if self.shift == 0:
            return self.padded[chosen], self.labels[chosen]
        height, width = self.size
        top, left = torch.randint(2 * self.shift + 1, (2, len(chosen), 1))  # each B, 1
        rows = (top + torch.arange(height))[:, None, :, None]  # B, 1, H, 1
        columns = (left + torch.arange(width))[:, None, None, :]  # B, 1, 1, W
        channels = torch.arange(self.padded.shape[1])[:, None, None]  # C, 1, 1
        return self.padded[chosen[:, None, None, None], channels, rows, columns], self.labels[chosen]


def unchanged(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Collate nothing: TensorImages gives whole batches (a named function, so that workers can be sent it)."""
    return batch


class InMemoryData(ImageData):
    """A set that fits in memory: resized and normalised once, augmented by random translation.

    Args:
        mean, std: of the training pixels in [0, 1], one number for all channels.
        augment: shift training images by up to an eighth of their size, drawn anew for each image.
    """

    collate = staticmethod(unchanged)
    mean: float
    std: float
    names: tuple[str, ...] | None = None
    """What the classes are called, where they are called something."""

    def __init__(self, name: str, *, mean: float, std: float, augment: bool, **options: Any) -> None:
        super().__init__(name, **options)
        self.mean = mean
        self.std = std
        self.augment = augment

    def read(self) -> tuple[Pictures, Pictures]:
        """Training and validation pictures."""
        raise NotImplementedError

    def load(self) -> Splits:
        """Read, resize and normalise both splits; the fingerprint is that of the pictures as they were read."""
        train, val = self.read()
        return Splits(
            self._tensor_images(train, shift=self.image_size // 8 if self.augment else 0),
            self._tensor_images(val, shift=0),
            num_classes=len(self.names) if self.names else int(train.labels.max()) + 1,
            train_size=len(train.labels),
            fingerprint=partial(fingerprint, [tensor.numpy().tobytes() for tensor in (*train, *val)]),
            class_names=self.names,
        )

    def _tensor_images(self, pictures: Pictures, shift: int) -> TensorImages:
        images = pictures.images.float() / 255
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        black = -self.mean / self.std
        return TensorImages((images - self.mean) / self.std, pictures.labels, shift, background=black)
