"""The labels of a teacher for a row that has few of its own (Appendix A): written once, and how many are right."""

import math

import torch

from ablations.runner.runs import TASK, Run
from replk_lightning.data import DataError
from replk_lightning.data.label_shards import SoftLabels, read_labels
from replk_lightning.data.pools import UNKNOWN, Pool, pool_of, stratified
from replk_lightning.distributed import process, wait_for_all
from replk_lightning.pseudo_label import HumanLabels, label, load_teacher


def are_written(run: Run) -> bool:
    """Whether all labels that `run` trains with are there."""
    try:
        read_labels(run.labels)
    except DataError:  # none yet, or not all
        return False
    return True


def write_labels(run: Run, device: torch.device) -> None:
    """Write people's labels of the row's share, and of the rest those of the net that `run` needs; resumes.

    Several processes share the work.
    """
    supervision, (teacher,) = run.row.supervision, run.needs
    assert supervision is not None
    pool = pool_of(run.make_data())
    rank, processes = process()
    label(
        pool,
        [load_teacher(f"{TASK}={teacher.weights}")],
        run.labels,
        human={TASK: _kept(pool, supervision.labelled)},
        device=device,
        rank=rank,
        world=processes,
        progress=False,
    )
    wait_for_all()


def metrics_of(run: Run) -> dict[str, float]:
    """What the record of `run` says of its teacher: the percentage of its labels that are right, if it gave any."""
    share = _agreement(read_labels(run.labels), pool_of(run.make_data()))
    return {"pseudo_top1": round(share, 4)} if math.isfinite(share) else {}


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
