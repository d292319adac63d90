"""What a task asks of loaders that may be anybody's: the size of a batch, its images, the names of classes."""

import warnings
from typing import Any

import lightning as L
from torch import Tensor

from replk_lightning.data import DataError
from replk_lightning.trainer.resume import random_state, restore_random_state

REMEDY = "give it a collate_fn."


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
    """Images of a batch with or without labels: a tensor (N, C, H, W), or a list of tensors (C, H, W).

    Raises DataError for a batch of another form.
    """
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, list | tuple) or not batch:
        raise DataError(f"a batch is to be images, or images and labels, and the loader gives {_form(batch)}: {REMEDY}")
    return batch if isinstance(batch[0], Tensor) and batch[0].ndim == 3 else batch[0]


def labelled(batch: Any) -> Any:
    """A batch of training or validation, if it is a pair of which the first are tensors of floats; else DataError."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise DataError(f"a batch is to be a pair of images and labels, and the loader gives {_form(batch)}: {REMEDY}")
    images = batch[0]
    first = images[0] if isinstance(images, list | tuple) and images else images
    if not isinstance(first, Tensor):
        raise DataError(
            f"images are to be tensors, and the loader gives {_form(first)}: give its dataset a transform to tensors."
        )
    if not first.is_floating_point():
        raise DataError(f"images are to be of floats, and the loader gives {first.dtype}: scale and normalise them.")
    return batch


def _form(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    name = type(batch).__name__
    return f"a {name} of {len(batch)}" if isinstance(batch, list | tuple) else f"a {name}"


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
