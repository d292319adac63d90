"""What a task asks of loaders that may be anybody's: the size of a batch, its images, the names of classes."""

import warnings
from typing import Any

import lightning as L
from torch import Tensor

from replk_lightning.data import DataError
from replk_lightning.trainer.resume import random_state, restore_random_state


def batch_size_of(loader: Any) -> int:
    """Images of a training batch of one process, as the loader says or else as its first batch shows."""
    for source in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(source, "batch_size", None)
        if isinstance(size, int):
            return size
    drawn = random_state()
    batch = next(iter(loader))
    restore_random_state(drawn)
    return len(images_of(batch))


def images_of(batch: Any) -> Any:
    """Images of a batch with or without labels: a tensor (N, C, H, W), or a list of tensors (C, H, W)."""
    alone = isinstance(batch, Tensor) or (isinstance(batch[0], Tensor) and batch[0].ndim == 3)
    return batch if alone else batch[0]


def labelled(batch: Any) -> Any:
    """A batch of training or validation, if it is a pair; else raises DataError."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch
    what = f"a dict of {', '.join(map(str, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
    if isinstance(batch, list | tuple):
        what += f" of {len(batch)}"
    raise DataError(f"a batch is to be a pair of images and labels, and the loader gives {what}: give it a collate_fn.")


def class_names_of(trainer: L.Trainer | None, num_classes: int) -> tuple[str, ...] | None:
    """Names of the classes in the order of their numbers, as the data module or the training set has them.

    Warns of names that are not one for each of the `num_classes`, and leaves them out.
    """
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    if names is None:
        dataset = getattr(getattr(trainer, "train_dataloader", None), "dataset", None)
        while dataset is not None and not hasattr(dataset, "classes"):
            dataset = getattr(dataset, "dataset", None)  # of a Subset
        names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple):
        return None
    if len(names) != num_classes:
        warnings.warn(f"the data name {len(names)} classes, and the net has {num_classes}: no names kept", stacklevel=2)
        return None
    # torchvision's ImageNet has all synonyms of each
    return tuple(", ".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in names)
