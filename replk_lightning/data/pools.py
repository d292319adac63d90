"""Images to be labelled: a folder, a set of the hub, or a data set of this package, each image by its position."""

import copy
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from replk_lightning.data import DATA, Augmentation, DataError, ImageData, create_data
from replk_lightning.data.augment import Transform
from replk_lightning.data.base import fingerprint
from replk_lightning.data.decoding import DecodedImages, Encoded, Samples, decode_rgb
from replk_lightning.data.folders import walk
from replk_lightning.data.hub import HubRows, open_splits
from replk_lightning.data.imagefolder import ImageFiles
from replk_lightning.data.tensor_images import TensorImages

if TYPE_CHECKING:
    import datasets

UNKNOWN = -1
"""The label of an image that has none."""


class Preparation(NamedTuple):
    """How a teacher wants its images: side in pixels, and the transform of photographs."""

    size: int
    transform: Transform


class Pool(Protocol):
    """Images by position 0 … N − 1.

    `spec` is what `open_pool` opened; `labels` int64 (N,), UNKNOWN where an image has none, are of `num_classes`
    classes, None where the pool has no labels at all.
    """

    spec: str
    in_chans: int

    @property
    def num_classes(self) -> int | None:
        """Of the labels."""

    @property
    def labels(self) -> Tensor:
        """One an image."""

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """What the image is called."""

    def views(self, position: int, preparations: Sequence[Preparation]) -> list[Tensor]:
        """The image as each preparation wants it, float32 (C, size, size). Raises UnreadableImageError."""

    def training(self, image_size: int, augmentation: Augmentation) -> Dataset[Any]:
        """`(image, position)` for training."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the images."""


class Photographs:
    """A pool of encoded images: every view is decoded once and transformed for each teacher."""

    in_chans = 3

    def __init__(
        self,
        spec: str,
        samples: Samples,
        name: Callable[[int], str],
        fingerprint: Callable[[], str],
        labels: np.ndarray | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.spec, self.samples, self.num_classes = spec, samples, num_classes
        self.name, self.fingerprint = name, fingerprint  # neither opens an image
        self._labels = labels

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        """Int64 (N,)."""
        if self._labels is None:
            return torch.full((len(self),), UNKNOWN)
        return torch.from_numpy(np.asarray(self._labels, dtype=np.int64))

    def views(self, position: int, preparations: Sequence[Preparation]) -> list[Tensor]:
        """Decode and transform. Raises UnreadableImageError."""
        image = decode_rgb(self.samples[position].content)
        return [preparation.transform(image) for preparation in preparations]

    def training(self, image_size: int, augmentation: Augmentation) -> Dataset[Any]:
        """Augmented images; an unreadable one is replaced by the next, with that one's position."""
        return DecodedImages(Numbered(self.samples), augmentation.train_transform(image_size), train=True)


class Numbered:
    """Samples whose label is their position."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        return self.samples[index]._replace(label=index)


class InMemory:
    """The training split of a set held in memory; it has its own normalisation, so teachers only choose the size."""

    def __init__(self, data: ImageData, spec: str) -> None:
        self.spec, self.data = spec, data
        self.in_chans = data.in_chans
        self._still: dict[int, TensorImages] = {}

    @property
    def num_classes(self) -> int:
        """Of the set."""
        return self.data.num_classes

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> Tensor:
        """Int64 (N,)."""
        return _tensor_images(self.data).labels

    def name(self, position: int) -> str:
        """The set and the position."""
        return f"{self.data.name}/{position}"

    def views(self, position: int, preparations: Sequence[Preparation]) -> list[Tensor]:
        """The image without augmentation, at each size."""
        return [self._at(preparation.size)[position][0] for preparation in preparations]

    def _at(self, size: int) -> TensorImages:
        if size not in self._still:
            still: Any = self.data.at_size(size)
            still.augment = False
            self._still[size] = _tensor_images(still)
        return self._still[size]

    def training(self, image_size: int, augmentation: Augmentation) -> Dataset[Any]:
        """Translated images; `augmentation` is for photographs."""
        images = copy.copy(_tensor_images(self.data.at_size(image_size)))
        images.labels = torch.arange(len(images.labels))
        return images

    def fingerprint(self) -> str:
        """That of the set."""
        return self.data.fingerprint


def _tensor_images(data: ImageData) -> TensorImages:
    train = data.splits.train
    assert isinstance(train, TensorImages)
    return train


class FolderImages:
    """All pictures under `root` (see folders.py), by name; the folder directly below the root is an image's class.

    Names lie in one array, as in ImageFiles; `reached` are the real folders that they were found in. Raises DataError
    if there are none.
    """

    def __init__(self, root: Path) -> None:
        found = walk(root)
        self.root, self.reached = root, found.reached
        self.names = np.array(sorted(map(os.fsencode, found.names)), dtype=np.bytes_)
        if not len(self.names):
            raise DataError(f"{root} holds no image: put files such as {root / '1.jpg'} there.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Encoded:
        name = self.name(index)
        return Encoded(name, str(self.root / name), UNKNOWN)

    def name(self, index: int) -> str:
        """Relative to the root."""
        return os.fsdecode(self.names[index])

    def fingerprint(self) -> str:
        """Of all names."""
        return fingerprint(self.names.tolist())

    def labels(self) -> tuple[np.ndarray, int]:
        """Class numbers in alphabetical order, UNKNOWN for images that lie in no folder; and how many classes."""
        folders = [os.fsdecode(name).rpartition(os.sep)[0].partition(os.sep)[0] for name in self.names]
        classes = {name: label for label, name in enumerate(sorted(set(folders) - {""}))}
        return np.array([classes.get(folder, UNKNOWN) for folder in folders]), len(classes)


class HubPool:
    """Rows of a set of the hub, or of a local copy, that need not have labels."""

    def __init__(self, rows: "datasets.Dataset", name: str, image: str, label: str | None) -> None:
        import datasets

        self.rows = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self.features = rows.features
        self.of, self.column = name, image
        self.label = rows.with_format("numpy")[label][:] if label else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        image = self.rows[index][self.column] or {}
        content = image.get("bytes")
        return Encoded(self.name(index), (image.get("path") or b"") if content is None else content, UNKNOWN)

    def name(self, index: int) -> str:
        """Its row."""
        return f"row {index} of {self.of}"

    def fingerprint(self) -> str:
        """Of the columns and the sizes of all encoded images."""
        import pyarrow.compute as pc

        sizes = pc.binary_length(pc.struct_field(self.rows.data.column(self.column), "bytes"))
        return fingerprint([repr(self.features).encode(), pc.fill_null(sizes, 0).to_numpy().astype("int64").tobytes()])


def open_pool(spec: str, split: str = "train", label_column: str | None = None) -> Pool:
    """The images called `spec`: a folder, `hf:NAME`, or a data set of this package (its training split).

    Args:
        split, label_column: of a set of the hub or a folder that `save_to_disk` wrote; None for the column means the
            only one of class labels, if there is one.

    Raises:
        DataError: there is no such thing, or it holds no images.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return _open_hub(spec, str(folder), split, label_column) if saved else _open_folder(folder)
    kind, _, where = spec.partition(":")
    if kind == "hf" and where:
        return _open_hub(spec, where, split, label_column)
    if kind in DATA:
        return pool_of(create_data(spec, augmentation=None), spec)
    choices = ", ".join(DATA)
    raise DataError(f"There is no folder {spec} and no data set of that name; there are {choices} (hf:NAME).")


def _open_folder(folder: Path) -> Photographs:
    files = FolderImages(folder)
    labels, classes = files.labels()
    return Photographs(str(folder.resolve()), files, files.name, files.fingerprint, labels, classes or None)


def _open_hub(spec: str, source: str, split: str, label_column: str | None) -> Photographs:
    import datasets

    found = open_splits(source, None, streaming=False)
    if split not in found:
        raise DataError(f"The data set {spec} has no split {split!r}; it has {', '.join(found)}.")
    features = found[split].features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or (label_column and label_column not in labels):
        wanted = f"a label column {label_column!r}" if len(images) == 1 else "exactly one column of images"
        raise DataError(f"The data set {spec} needs {wanted}; it has the columns {', '.join(features)}.")
    label = label_column or (labels[0] if len(labels) == 1 else None)
    rows = HubPool(found[split], spec, images[0], label)
    classes = features[label].num_classes if label else None
    return Photographs(spec, rows, rows.name, rows.fingerprint, rows.label, classes)


def pool_of(data: ImageData, spec: str | None = None) -> Pool:
    """The training split of `data` as a pool. Raises DataError for streams, whose images have no positions."""
    train = data.splits.train
    if isinstance(train, TensorImages):
        return InMemory(data, spec or data.name)
    if isinstance(train, DecodedImages):
        name = partial(_name, train.samples, data.name)
        labels = labels_of(data).numpy()
        return Photographs(
            spec or data.name, train.samples, name, partial(getattr, data, "fingerprint"), labels, data.num_classes
        )
    raise DataError(f"The images of {data.name} come as a stream and have no positions: use streaming=False.")


def _name(samples: Samples, of: str, position: int) -> str:
    return os.fsdecode(samples.names[position]) if isinstance(samples, ImageFiles) else f"row {position} of {of}"


def labels_of(data: ImageData) -> Tensor:
    """The labels of all training images, int64 (N,). Raises DataError for streams."""
    train = data.splits.train
    if isinstance(train, TensorImages):
        return train.labels
    samples = train.samples if isinstance(train, DecodedImages) else None
    if isinstance(samples, ImageFiles):
        return torch.from_numpy(samples.labels.astype(np.int64))
    if isinstance(samples, HubRows):
        return torch.from_numpy(samples.rows.with_format("numpy")["label"][:].astype(np.int64))
    raise DataError(f"The labels of {data.name} are not known before its images: use streaming=False.")


def stratified(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Ascending positions of `share` of every class (at least one image), always the same for one `seed`."""
    random, values = np.random.RandomState(seed), labels.numpy()
    chosen = []
    for label in np.unique(values[values >= 0]):
        of_class = random.permutation(np.flatnonzero(values == label))
        chosen.append(of_class[: max(1, round(share * len(of_class)))])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
