"""Rows that train with fewer labels than there are, and with those of a teacher instead (Appendix A)."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import torch

from ablations.records.record import Record
from ablations.runner.runs import TASK, PredecessorError, Run
from replk_lightning.command_line import default_device
from replk_lightning.data import DataError, ImageData
from replk_lightning.data.multitask import Labelled, MultiTaskData, PseudoLabelled
from replk_lightning.data.pools import UNKNOWN, Pool, pool_of, stratified
from replk_lightning.data.sharing import process, wait_for_all
from replk_lightning.data.soft_labels import SoftLabels, read_labels
from replk_lightning.pseudo_label import HumanLabels, label, load_teacher


def supervised(run: Run, data: ImageData, train: Callable[[Run], Record]) -> tuple[MultiTaskData, dict[str, float]]:
    """The training data of `run` under its row's supervision, and metrics of its teacher.

    `train` trains the teacher, unless its labels are all written. Labels lie in the run's folder, like its checkpoint:
    a run that was killed goes on from either.
    """
    supervision = run.row.supervision
    assert supervision is not None
    metrics: dict[str, float] = {}
    if supervision.teacher is None:
        sources: list[Labelled | PseudoLabelled] = [Labelled(TASK, data, supervision.labelled)]
    else:
        pool = pool_of(data)
        labels = _labels(run, pool, train)
        sources = [PseudoLabelled(run.folder / "labels", pool)]
        metrics["pseudo_top1"] = round(_agreement(labels, pool), 4)
    mixed = MultiTaskData(
        sources,
        {TASK: data},
        epoch_size=data.train_size,
        name=data.name,
        in_chans=data.in_chans,
        image_size=data.image_size,
        batch_size=data.batch_size,
        augmentation=getattr(data, "augmentation", None),
        num_workers=data.num_workers,
    )
    return mixed, metrics


def _labels(run: Run, pool: Pool, train: Callable[[Run], Record]) -> SoftLabels:
    """People's labels of the share, a teacher's of the rest; trained and written unless they are there."""
    folder = run.folder / "labels"
    try:
        return read_labels(folder)
    except DataError:  # none yet, or not all
        pass
    assert run.row.supervision is not None
    (row,) = run.ablation.select([run.row.supervision.teacher or ""])
    teacher = replace(run, row=row, init=None)
    record = train(teacher)
    if record.status == "failed":
        reason = f"row {row.key!r}, seed {run.seed}, cannot label images for {run.row.key!r}: {record.reason}"
        raise PredecessorError(reason, record)
    rank, processes = process()
    label(
        pool,
        [load_teacher(f"{TASK}={teacher.folder / 'last.ckpt'}")],
        folder,
        human={TASK: _kept(pool, run.row.supervision.labelled)},
        device=default_device(),
        rank=rank,
        world=processes,
        progress=False,
    )
    wait_for_all()
    if rank == 0:
        shutil.rmtree(teacher.folder, ignore_errors=True)
    return read_labels(folder)


def _kept(pool: Pool, share: float) -> HumanLabels:
    """The labels of a share of every class, all others unknown."""
    labels = torch.full_like(pool.labels, UNKNOWN)
    chosen = stratified(pool.labels, share)
    labels[chosen] = pool.labels[chosen]
    assert pool.num_classes is not None
    return HumanLabels(labels, pool.num_classes)


def _agreement(labels: SoftLabels, pool: Pool) -> float:
    """Percentage of the teacher's likeliest classes that are the people's that were kept from it."""
    targets = labels.targets[TASK].rows(labels.positions)
    right = targets.classes[:, 0].long() == pool.labels[labels.positions]
    return 100 * right[~targets.human].double().mean().item()
