"""Image-classification sets of the Hugging Face hub, or local copies of them, through the library `datasets`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch.utils.data import DataLoader, Dataset

from replk_lightning.data.augment import Augmentation, Transform
from replk_lightning.data.base import DataError, ImageData, Splits, fingerprint
from replk_lightning.data.decoding import DecodedImages, Encoded
from replk_lightning.data.imagefolder import VALIDATION_NAMES
from replk_lightning.data.stream import DecodedStream, StreamLoader, encode

if TYPE_CHECKING:
    import datasets

    Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

MAX_SHARDS = 64
"""Parts that a local copy is cut into when it is streamed: the most workers that can share it."""

HEAD = 8
"""Rows of a stream that its fingerprint looks at."""


class HubImages(ImageData):
    """Any set with a column of images and a column of class labels.

    Args:
        dataset: name on the hub.
        config: name of its configuration, if it has several.
        path: a local copy: a folder written by `save_to_disk`, or a folder of Parquet or image files.
        train_split, val_split: None means the first of `val`, `validation`, `valid`, `test` that is there.
        image_column, label_column: None means the only column of that type.
        streaming: read while training instead of downloading first; nothing is stored.
        train_size: training images of a stream that does not say it.
        shuffle_buffer: encoded images a worker keeps to shuffle a stream with.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        path: str | Path | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        streaming: bool = False,
        train_size: int | None = None,
        shuffle_buffer: int = 1000,
        image_size: int = 224,
        batch_size: int = 32,
        augmentation: Augmentation | None = None,
        num_workers: int = 8,
    ) -> None:
        name = dataset.rstrip("/").rsplit("/")[-1]
        super().__init__(name, in_chans=3, image_size=image_size, batch_size=batch_size, num_workers=num_workers)
        self.dataset = dataset
        self.config = config
        self.path = path
        self.train_split = train_split
        self.val_split = val_split
        self.image_column = image_column
        self.label_column = label_column
        self.streaming = streaming
        self.loader_class = StreamLoader if streaming else DataLoader
        self.stated_size = train_size
        self.shuffle_buffer = shuffle_buffer
        self.augmentation = augmentation or Augmentation()

    def load(self) -> Splits:
        """Download what is missing and find splits and columns."""
        found = open_splits(str(self.path or self.dataset), self.config, self.streaming)
        train_name = self._split_name(found, (self.train_split,))
        val_name = self._split_name(found, (self.val_split,) if self.val_split else VALIDATION_NAMES)
        train, val = self._columns(found[train_name]), self._columns(found[val_name])
        size = row_count(found[train_name], train_name) or self.stated_size
        return Splits(
            self._dataset(train, self.augmentation.train_transform(self.image_size), size, training=True),
            self._dataset(val, self.augmentation.eval_transform(self.image_size), None, training=False),
            num_classes=train.features["label"].num_classes,
            train_size=size,
            fingerprint=partial(fingerprint_rows, train, val),
            class_names=tuple(train.features["label"].names),
        )

    def _split_name(self, found: Mapping[str, "Rows"], names: tuple[str, ...]) -> str:
        for name in names:
            if name in found:
                return name
        raise DataError(f"The data set {self.name} has no split {names[0]!r}; it has {', '.join(found)}.")

    def _columns(self, rows: "Rows") -> "Rows":
        """Columns `image`, not decoded, and `label`."""
        import datasets

        image = self._column(rows, self.image_column, datasets.Image, "image_column")
        label = self._column(rows, self.label_column, datasets.ClassLabel, "label_column")
        renamed = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
        rows = rows.select_columns([image, label]).rename_columns(renamed)
        return rows.cast_column("image", datasets.Image(decode=False))

    def _column(self, rows: "Rows", wanted: str | None, kind: type, option: str) -> str:
        columns = rows.features or {}
        fitting = [name for name, feature in columns.items() if isinstance(feature, kind)]
        if wanted in fitting or (wanted is None and len(fitting) == 1):
            return wanted or fitting[0]
        raise DataError(
            f"The data set {self.name} needs {option}, the name of a column of type {kind.__name__}, but got "
            f"{wanted!r}; of its columns {', '.join(columns) or '(none)'} these fit: {', '.join(fitting) or 'none'}."
        )

    def _dataset(self, rows: "Rows", transform: Transform, size: int | None, training: bool) -> Dataset[Any]:
        import datasets

        if not self.streaming:
            return DecodedImages(HubRows(rows, self.name), transform, training)
        if isinstance(rows, datasets.Dataset):  # a saved folder
            rows = rows.to_iterable_dataset(num_shards=min(MAX_SHARDS, len(rows)))
        if training:
            rows = rows.shuffle(seed=0, buffer_size=self.shuffle_buffer)  # the loader's epochs vary the order
        return DecodedStream(rows, self.name, transform, size, training)


class HubRows:
    """Rows of the columns `image` and `label` as encoded images."""

    def __init__(self, rows: "datasets.Dataset", name: str) -> None:
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return encode(self.rows[index], f"row {index} of {self.name}")


@contextmanager
def offline() -> Iterator[None]:
    """In here only what has been downloaded is there: nothing is asked of the hub, nor waited for."""
    import datasets.config
    import huggingface_hub.constants as hub

    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def open_splits(source: str, config: str | None, streaming: bool, revision: str | None = None) -> Mapping[str, "Rows"]:
    """All splits of a hub set or of a local folder by name. Raises DataError that says what to do."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        if any((Path(source) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return open_saved(source)
        splits: Mapping[str, Rows] = datasets.load_dataset(source, config, streaming=streaming, revision=revision)
        return splits
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            remedy = "accept its licence on its page there and log in with `hf auth login`"
            copy = "or unpack a copy into class folders and use imagefolder:PATH"
            raise DataError(f"The data set {source} is gated on the Hugging Face hub: {remedy}, {copy}.") from error
        raise DataError(f"There is no data set {source} on the Hugging Face hub, or not for you: {error}") from error
    except ConnectionError as error:
        remedy = "connect to the internet, or name a local copy, as imagefolder:PATH or ade20k:PATH"
        raise DataError(
            f"The data set {source} is not here and the Hugging Face hub not reachable: {remedy}."
        ) from error
    except (ValueError, OSError) as error:
        raise DataError(f"The data set {source} cannot be read: {error}") from error


def open_saved(folder: str) -> Mapping[str, "Rows"]:
    """The splits in a folder that `DatasetDict.save_to_disk` wrote."""
    import datasets

    saved = datasets.load_from_disk(folder)
    if not isinstance(saved, datasets.DatasetDict):
        raise DataError(f"{folder} holds a single split: save a DatasetDict with the splits train and validation.")
    splits: Mapping[str, Rows] = saved
    return splits


def row_count(rows: "Rows", split: str) -> int | None:
    """Rows in a split, from its description if it is a stream; None if that does not say."""
    import datasets

    if isinstance(rows, datasets.Dataset):
        return len(rows)
    described = (rows.info.splits or {}).get(split)
    return described.num_examples or None if described else None


def fingerprint_rows(train: "Rows", val: "Rows") -> str:
    """Fingerprint of all labels and encoded sizes, or of a stream's columns and first rows."""
    return fingerprint(part for rows in (train, val) for part in _row_bytes(rows))


def _row_bytes(rows: "Rows") -> Iterator[bytes]:
    import datasets
    import pyarrow.compute as pc

    yield repr(rows.features).encode()
    if isinstance(rows, datasets.Dataset):
        yield rows.with_format("numpy")["label"][:].tobytes()
        sizes = pc.binary_length(pc.struct_field(rows.data.column("image"), "bytes"))
        yield pc.fill_null(sizes, 0).to_numpy().astype("int64").tobytes()
        return
    for row in rows.take(HEAD):
        yield repr(row).encode()
