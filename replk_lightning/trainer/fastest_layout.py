"""A callback that lets this package's nets train in the memory layout that is measured faster on the GPU at hand."""

import statistics
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from replk_lightning.measure.layouts import faster, layout_seconds
from replk_lightning.models.classifier import classifiers

LAYOUT = "layout"
"""Entry of checkpoints: the name of a layout for each net of this package, by the net's name, where one was chosen."""

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's precisions that compute within autocast, and its dtype."""


class FastestLayout(L.Callback):
    """Before a training's first step on a GPU, times each net of this package in both layouts, and takes the faster.

    Timed is forward and backward of a copy on the first batch's images; the choice is rank 0's in all processes, is
    printed, and becomes the net's `memory_format`. Checkpoints hold it, and whoever goes on from one with this callback
    computes as it was written and measures nothing. A net with a `memory_format` keeps that. Where nothing is measured
    (other devices, weights that may lie in shards, a checkpoint without a choice), the rule of
    `replk_lightning.models.layout` holds.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide before the very first step."""
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if batch_idx or trainer.global_step or not whole or not on_gpu(trainer):
            return
        for name, net in classifiers(pl_module).items():
            if net.layout is None:
                channels = next(each.in_channels for each in net.modules() if isinstance(each, nn.Conv2d))
                images = images_of(batch, channels)
                if images is None:
                    rank_zero_warn(
                        f"{name} trains in the layout of the rule: the first batch holds no images of floats with "
                        f"{channels} channels to time it on; set its memory_format to choose"
                    )
                    continue
                # all processes time it, as synchronised batch norms wait for each other
                seconds = layout_seconds(net, images, True, AUTOCAST.get(trainer.precision or ""))
                net.layout = trainer.strategy.broadcast(faster(seconds))
                if trainer.is_global_zero:
                    print(f"{name} trains in {net.layout}, as measured: {_told(seconds)}")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was chosen or set."""
        chosen = {name: net.layout for name, net in classifiers(pl_module).items() if net.layout}
        if chosen:
            checkpoint[LAYOUT] = chosen

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compute on a GPU as before; a net with a `memory_format` of its own keeps it."""
        if on_gpu(trainer):
            for name, net in classifiers(pl_module).items():
                net.layout = net.layout or checkpoint.get(LAYOUT, {}).get(name)


def on_gpu(trainer: L.Trainer) -> bool:
    """Whether this process trains on an NVIDIA GPU."""
    return trainer.strategy.root_device.type == "cuda"


def images_of(batch: Any, channels: int) -> Tensor | None:
    """A batch's first images (N, channels, H, W) of floats; those of one image each are padded to the largest.

    None where there are none.
    """
    floats = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    whole = next((leaf for leaf in floats if leaf.ndim == 4 and leaf.shape[1] == channels), None)
    if whole is not None:
        return whole
    pictures = [leaf for leaf in floats if leaf.ndim == 3 and leaf.shape[0] == channels]
    if not pictures:
        return None
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    padded = pictures[0].new_zeros(len(pictures), len(pictures[0]), height, width)
    for row, picture in zip(padded, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return padded


def _told(seconds: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} {1e3 * statistics.median(each):.1f} ms a step" for name, each in seconds.items())
