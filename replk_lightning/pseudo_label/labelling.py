"""Teachers over images to shards of labels: resumable, by several processes, limited by the teachers' inference."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from replk_lightning.data.base import fingerprint
from replk_lightning.data.decoding import UnreadableImageError
from replk_lightning.data.label_shards import (
    Origin,
    Shard,
    clear_stale,
    list_unreadable,
    whole_shards,
    write_shard,
)
from replk_lightning.data.pools import Pool, Preparation
from replk_lightning.data.targets import Targets, soften, stack
from replk_lightning.pseudo_label.teachers import Teacher


class PseudoLabelError(ValueError):
    """Images cannot be labelled as asked; the message is one sentence."""


class HumanLabels(NamedTuple):
    """What people said for one task: int64 (N,), negative where they said nothing, of `num_classes`."""

    labels: Tensor
    num_classes: int


@dataclass
class Summary:
    """What one process did, and how long it read images, waited for the teachers, and wrote."""

    shards: int
    found: int = 0
    written: int = 0
    images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("reading", "teachers", "writing"), 0.0))
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def share(self, part: str) -> float:
        """Of the time, between 0 and 1."""
        return self.seconds[part] / max(sum(self.seconds.values()), 1e-9)

    def __str__(self) -> str:
        lines = [f"{self.written} shards written, {self.found} of {self.shards} were there already"]
        if self.images:
            shares = ", ".join(f"{part} {self.share(part):.1%}" for part in self.seconds)
            lines.append(f"{self.images} images in {sum(self.seconds.values()):.1f} s: {shares}")
        return "; ".join(lines)


class Stopwatch:
    """Adds the time since the last look to one part of the summary."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.since = seconds, time.perf_counter()

    def lap(self, part: str) -> None:
        """All time since the last lap was `part`'s."""
        now = time.perf_counter()
        self.seconds[part] += now - self.since
        self.since = now


class Decoded(NamedTuple):
    """A batch of one shard: positions and views that could be read, and what could not."""

    shard: int
    positions: list[int]
    views: list[Tensor]
    unreadable: list[tuple[str, str]]


class Views(Dataset[Decoded]):
    """Batches of a pool's images as every teacher wants them; never stops at an unreadable one."""

    def __init__(self, pool: Pool, preparations: Sequence[Preparation], batches: Sequence[tuple[int, range]]) -> None:
        self.pool, self.preparations, self.batches = pool, preparations, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Decoded:
        shard, wanted = self.batches[index]
        positions, views, unreadable = [], [], []
        for position in wanted:
            try:
                views.append(self.pool.views(position, self.preparations))
                positions.append(position)
            except UnreadableImageError as reason:
                unreadable.append((self.pool.name(position), " ".join(str(reason).split())))
        return Decoded(shard, positions, [torch.stack(column) for column in zip(*views, strict=True)], unreadable)


def label(
    pool: Pool,
    teachers: Sequence[Teacher],
    folder: Path,
    *,
    human: Mapping[str, HumanLabels] | None = None,
    top_k: int | None = 10,
    shard_size: int = 4096,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
    split: str = "train",
    progress: bool = True,
) -> Summary:
    """Write the labels of all images of `pool` into `folder`, but for the shards that are there.

    Process `rank` of `world` makes every `world`-th shard. Each teacher labels its task; where `human` has a label of
    that task, it is kept and marked and no teacher asked. A task of `human` without a teacher is unknown elsewhere.

    Raises:
        PseudoLabelError: a teacher does not fit the images or the human labels, or gives NaN.
        DataError: `folder` holds labels that were made otherwise.
    """
    human = dict(human or {})
    _check(pool, teachers, human)
    origin = origin_of(pool, teachers, human, top_k, shard_size, split)
    there = _there(folder, origin)
    mine = [number for number in range(rank, origin.shards, world) if number not in there]
    summary = Summary(origin.shards, found=len(there))
    labeller = _Labeller(pool, teachers, human, top_k, torch.device(device))
    total = sum(len(origin.positions(number)) for number in mine)
    with tqdm(total=total, unit="image", dynamic_ncols=True, disable=not (progress and mine)) as bar:
        for number, shard in labeller.shards(origin, mine, batch_size, workers, summary, bar):
            write_shard(shard, number, origin, folder)
            summary.written += 1
            labeller.watch.lap("writing")
    summary.unreadable = list_unreadable(folder, origin)
    return summary


def _there(folder: Path, origin: Origin) -> set[int]:
    folder.mkdir(parents=True, exist_ok=True)
    clear_stale(folder)
    return set(whole_shards(folder, origin))


def origin_of(
    pool: Pool,
    teachers: Sequence[Teacher],
    human: Mapping[str, HumanLabels],
    top_k: int | None,
    shard_size: int,
    split: str = "train",
) -> Origin:
    """How labels are made with these arguments."""
    tasks: dict[str, dict[str, Any]] = {
        task: {"classes": labels.num_classes, "teacher": None, "weights": None} for task, labels in human.items()
    }
    for teacher in teachers:
        tasks[teacher.task] = {
            "classes": teacher.num_classes,
            "teacher": teacher.name,
            "weights": teacher.weights,
        }
    for task, about in tasks.items():
        about["human"] = fingerprint([human[task].labels.numpy().tobytes()]) if task in human else None
    return Origin(pool.spec, pool.fingerprint(), len(pool), shard_size, top_k, tasks, split)


def _check(pool: Pool, teachers: Sequence[Teacher], human: Mapping[str, HumanLabels]) -> None:
    for teacher in teachers:
        if teacher.in_chans != pool.in_chans:
            raise PseudoLabelError(
                f"the teacher {teacher.name} takes images of {teacher.in_chans} channels, {pool.spec} has "
                f"{pool.in_chans}."
            )
        if teacher.task in human and human[teacher.task].num_classes != teacher.num_classes:
            raise PseudoLabelError(
                f"the human labels of task {teacher.task} are of {human[teacher.task].num_classes} classes, the "
                f"teacher {teacher.name} knows {teacher.num_classes}: give them a task of their own."
            )


class _Labeller:
    """The loop over batches."""

    def __init__(
        self,
        pool: Pool,
        teachers: Sequence[Teacher],
        human: Mapping[str, HumanLabels],
        top_k: int | None,
        device: torch.device,
    ) -> None:
        self.pool, self.human, self.top_k, self.device = pool, human, top_k, device
        self.preparations = list(dict.fromkeys(teacher.preparation for teacher in teachers))
        self.teachers = {teacher.task: teacher for teacher in teachers}
        for teacher in teachers:
            teacher.net.to(device)

    def shards(
        self, origin: Origin, numbers: Sequence[int], batch_size: int, workers: int, summary: Summary, bar: tqdm
    ) -> Iterator[tuple[int, Shard]]:
        """Every shard when its last batch is labelled."""
        batches = [
            (number, origin.positions(number)[start : start + batch_size])
            for number in numbers
            for start in range(0, len(origin.positions(number)), batch_size)
        ]
        last = {number: index for index, (number, _) in enumerate(batches)}
        dataset = Views(self.pool, self.preparations, batches)
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
        )
        self.watch = Stopwatch(summary.seconds)
        shard, parts = Shard(), dict[str, list[Targets]]()
        for index, batch in enumerate(loader):
            self.watch.lap("reading")
            for task, targets in self.targets(origin.tasks, batch).items():
                parts.setdefault(task, []).append(targets)
            self.watch.lap("teachers")
            shard.positions += batch.positions
            shard.unreadable += batch.unreadable
            done = len(batch.positions) + len(batch.unreadable)
            summary.images += done
            bar.update(done)
            if index == last[batch.shard]:
                shard.names = [self.pool.name(position) for position in shard.positions]
                shard.targets = {task: stack(found) for task, found in parts.items()}
                yield batch.shard, shard
                shard, parts = Shard(), {}

    def targets(self, tasks: Mapping[str, Any], batch: Decoded) -> dict[str, Targets]:
        """Every task's targets of one batch, on the CPU."""
        return {task: self._of_task(task, about["classes"], batch) for task, about in tasks.items()}

    def _of_task(self, task: str, classes: int, batch: Decoded) -> Targets:
        labels = torch.full((len(batch.positions),), -1)
        if task in self.human:
            labels = self.human[task].labels[batch.positions]
        targets = Targets.of_labels(labels)
        teacher = self.teachers.get(task)
        if teacher is None:
            return targets
        width = classes if self.top_k is None else min(self.top_k, classes)
        whole = stack([targets, Targets.unknown(0, width)])
        ask = (labels < 0).nonzero().flatten()
        if len(ask):
            images = batch.views[self.preparations.index(teacher.preparation)][ask]
            soft = soften(teacher.probabilities(images.to(self.device, non_blocking=True)), self.top_k)
            found = Targets(*(part.cpu() for part in soft))
            if not found.shares.isfinite().all():
                worst = batch.positions[int(ask[int(found.shares.isfinite().all(1).int().argmin())])]
                raise PseudoLabelError(f"the teacher {teacher.name} gives NaN for {self.pool.name(worst)}.")
            found.save_to(whole, ask)
        return whole
