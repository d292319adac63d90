"""Labels of images in sharded Parquet: `labels-00012-of-00100.parquet` holds those of consecutive positions.

Columns: `position` and `image`, and for every task `TASK_classes` (k class numbers, the likeliest first),
`TASK_probabilities` (k), `TASK_remainder` (what all other classes have together) and `TASK_human` (a person gave the
label, with probability 1). Where nothing is known of a task, probabilities and remainder are 0. Probabilities are
float16. The file's metadata say how the labels were made and which images of its range could not be read.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replk_lightning.atomic import write_atomically
from replk_lightning.data.base import DataError
from replk_lightning.data.targets import Targets

KEY = b"replk_lightning"
VERSION = 1
UNREADABLE = "unreadable.txt"
STALE_SECONDS = 600
"""A temporary file is written in less; an older one is a killed run's."""


@dataclass(frozen=True)
class Origin:
    """How labels were made: shards of one folder share all of it.

    `tasks` is `{task: {"classes": C, "teacher": its name or None, "weights": their fingerprint, "human": that of the
    human labels or None}}`; `top_k` None keeps all classes.
    """

    images: str
    fingerprint: str
    count: int
    shard_size: int
    top_k: int | None
    tasks: dict[str, dict[str, Any]]
    split: str = "train"
    version: int = VERSION

    @property
    def shards(self) -> int:
        """How many files the labels take."""
        return -(-self.count // self.shard_size)

    def positions(self, shard: int) -> range:
        """The images of one file."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def path(self, folder: Path, shard: int) -> Path:
        """The file of one shard."""
        return folder / f"labels-{shard:05d}-of-{self.shards:05d}.parquet"

    def difference(self, other: "Origin") -> str | None:
        """What `other`'s labels were made with and these are not, in words; None if nothing."""
        ours, theirs = asdict(self), asdict(other)
        for name in (name for name in ours if ours[name] != theirs[name]):
            if name == "tasks":
                return _task_difference(self.tasks, other.tasks)
            return f"{name.replace('_', ' ')} {theirs[name]}, not {ours[name]}"
        return None


def _task_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if ours.keys() != theirs.keys():
        return f"the tasks {', '.join(theirs)}, not {', '.join(ours)}"
    task = next(name for name in ours if ours[name] != theirs[name])
    part = next(name for name in ours[task] if ours[task][name] != theirs[task].get(name))
    return f"other {part} of task {task}: {theirs[task].get(part)}, not {ours[task][part]}"


@dataclass
class Shard:
    """What one file holds: positions that could be read, their names, targets a task, and what could not be read."""

    positions: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    targets: dict[str, Targets] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def write_shard(shard: Shard, number: int, origin: Origin, folder: Path) -> None:
    """Write one file, whole or not at all; a second writer of the same shard replaces it by the same labels."""
    import datasets
    import pyarrow.parquet as pq

    features: dict[str, Any] = {"position": datasets.Value("int64"), "image": datasets.Value("string")}
    columns: dict[str, Any] = {"position": np.array(shard.positions, dtype=np.int64), "image": shard.names}
    for task, targets in shard.targets.items():
        width = targets.classes.shape[1]
        features[f"{task}_classes"] = datasets.List(datasets.Value("int32"), length=width)
        features[f"{task}_probabilities"] = datasets.List(datasets.Value("float16"), length=width)
        features[f"{task}_remainder"] = datasets.Value("float16")
        features[f"{task}_human"] = datasets.Value("bool")
        parts = dict(zip(("classes", "probabilities", "remainder", "human"), targets, strict=True))
        columns |= {f"{task}_{part}": tensor.numpy() for part, tensor in parts.items()}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).data.table
    about = json.dumps({"origin": asdict(origin), "unreadable": shard.unreadable})
    table = table.replace_schema_metadata({**table.schema.metadata, KEY: about.encode()})
    path = origin.path(folder, number)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


@dataclass(frozen=True)
class ShardInfo:
    """What a file says about itself."""

    path: Path
    origin: Origin
    rows: int
    unreadable: list[tuple[str, str]]


def read_info(path: Path) -> ShardInfo | None:
    """What the file at `path` says about itself; None if it is not there or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            about = json.loads(file.schema_arrow.metadata[KEY])
            unreadable = [(name, reason) for name, reason in about["unreadable"]]
            return ShardInfo(path, Origin(**about["origin"]), file.metadata.num_rows, unreadable)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def whole_shards(folder: Path, origin: Origin) -> dict[int, ShardInfo]:
    """The shards of `origin` that are there, by number. Raises DataError if any file there is of another origin."""
    for path in sorted(folder.glob("labels-*.parquet")):
        info = read_info(path)
        if info is not None and (different := origin.difference(info.origin)):
            raise DataError(f"{path} was written with {different}: name another folder, or delete that one.")
    found = {number: read_info(origin.path(folder, number)) for number in range(origin.shards)}
    return {
        number: info
        for number, info in found.items()
        if info is not None and info.rows + len(info.unreadable) == len(origin.positions(number))
    }


def list_unreadable(folder: Path, origin: Origin) -> list[tuple[str, str]]:
    """Name and reason of every unreadable image so far; written to `unreadable.txt` if there are any.

    Written again until no other process has added a shard meanwhile, so that the last one to write knows all.
    """
    written: list[tuple[str, str]] = []
    while (found := [bad for _, info in sorted(whole_shards(folder, origin).items()) for bad in info.unreadable]) != (
        written
    ):
        text = "".join(f"{name}\t{reason}\n" for name, reason in found)
        write_atomically(folder / UNREADABLE, text)
        written = found
    return written


def clear_stale(folder: Path) -> None:
    """Delete what killed runs left half-written."""
    for path in folder.glob(".labels-*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # another process was faster
            continue


@dataclass(frozen=True)
class SoftLabels:
    """All labels of a folder: their origin, the positions that have any, and full-length targets a task."""

    origin: Origin
    positions: torch.Tensor
    targets: dict[str, Targets]

    @property
    def tasks(self) -> dict[str, int]:
        """Classes of each task."""
        return {task: about["classes"] for task, about in self.origin.tasks.items()}


def read_labels(folder: Path) -> SoftLabels:
    """Every label in `folder`, in memory: 6 bytes an image, task and listed class, and 3 an image and task.

    Raises DataError if there are none or shards are missing.
    """
    infos = [info for path in sorted(folder.glob("labels-*.parquet")) if (info := read_info(path))]
    if not infos:
        raise DataError(f"{folder} holds no labels: write some with python -m replk_lightning pseudo-label.")
    origin = infos[0].origin
    whole = whole_shards(folder, origin)
    if len(whole) < origin.shards:
        missing = origin.shards - len(whole)
        raise DataError(f"{folder} lacks {missing} of {origin.shards} shards: run the command that writes it again.")
    tables = [_read(info.path, list(origin.tasks)) for _, info in sorted(whole.items())]
    positions = torch.cat([where for where, _ in tables])
    targets = {}
    for task in origin.tasks:
        width = tables[0][1][task].classes.shape[1]
        targets[task] = Targets.unknown(origin.count, width)
        for where, found in tables:
            found[task].save_to(targets[task], where)
    return SoftLabels(origin, positions, targets)


def _read(path: Path, tasks: Sequence[str]) -> tuple[torch.Tensor, dict[str, Targets]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)

    def column(name: str) -> torch.Tensor:
        values = table[name].combine_chunks()
        width = getattr(values.type, "list_size", None)
        flat = (values.flatten() if width else values).to_numpy(zero_copy_only=False)
        return torch.from_numpy(np.array(flat.reshape(-1, width) if width else flat))

    parts = ("classes", "probabilities", "remainder", "human")
    found = {task: Targets(*(column(f"{task}_{part}") for part in parts)) for task in tasks}
    return column("position"), found
