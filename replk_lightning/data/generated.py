"""A generated set for scale `smoke`: noisy gratings, one orientation a class; it only has to be learnable and tiny."""

import numpy as np
import torch

from replk_lightning.data.tensor_images import InMemoryData, Pictures

PERIOD = 8
"""Pixels from crest to crest."""


class Generated(InMemoryData):
    """64 gratings to train and 32 to validate on, 32×32 RGB, four classes; the same on every machine up to rounding."""

    def __init__(
        self,
        num_classes: int = 4,
        train_images: int = 64,
        val_images: int = 32,
        image_size: int = 32,
        batch_size: int = 16,
        augment: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            "generated",
            mean=0.5,
            std=0.25,
            augment=augment,
            in_chans=3,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        self.sizes = (num_classes, train_images, val_images)

    def read(self) -> tuple[Pictures, Pictures]:
        """Draw both splits from one fixed generator."""
        num_classes, train_images, val_images = self.sizes
        random = np.random.RandomState(0)
        train = self._gratings(random, train_images, num_classes)
        return train, self._gratings(random, val_images, num_classes)

    def _gratings(self, random: np.random.RandomState, count: int, num_classes: int) -> Pictures:
        labels = np.arange(count) % num_classes
        angle = (np.pi * labels / num_classes)[:, None, None]
        y, x = np.mgrid[: self.image_size, : self.image_size]
        phase = random.uniform(0, 2 * np.pi, (count, 1, 1))
        waves = np.sin(2 * np.pi / PERIOD * (x * np.cos(angle) + y * np.sin(angle)) + phase)  # N, H, W
        noise = random.normal(0, 0.5, (count, 3, self.image_size, self.image_size))
        grey = np.clip(127.5 + 60 * (waves[:, None] + noise), 0, 255)
        return Pictures(torch.from_numpy(grey.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64)))
