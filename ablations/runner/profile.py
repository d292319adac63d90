"""What needs no training: parameters and multiply-adds of the paper's own models, and timings on this machine."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from ablations.records.provenance import commit, hardware, versions
from ablations.records.record import Record, read_record, record_name, write_record
from ablations.scales import PAPER, get_scale
from ablations.spec import DENSE_MACS, DENSE_PARAMETERS, MACS, PARAMETERS, Ablation, Row
from replk_lightning.measure.complexity import complexity, detector_complexity, segmenter_complexity
from replk_lightning.recipes import SegmentRecipe


def count(ablation: Ablation, row: Row) -> Record:
    """Parameters (millions) and multiply-adds (10^9) on the meta device, merged: the classifier's and the head's."""
    wanted = ablation.keys("count")
    metrics: dict[str, float] = {}
    options = get_scale(PAPER.name, ablation).options_for(row)
    if {PARAMETERS.key, MACS.key} & wanted:
        side = ablation.resolution_of(row)
        cost = complexity(row.model, (3, side, side), folded=True, **options)
        metrics |= {PARAMETERS.key: cost.parameters / 1e6, MACS.key: cost.macs / 1e9}
    recipe = ablation.transfer_of(row, PAPER)
    if recipe and {DENSE_PARAMETERS.key, DENSE_MACS.key} & wanted:
        if isinstance(recipe, SegmentRecipe):
            cost = segmenter_complexity(row.model, recipe, merged=True, **options)
        else:
            cost = detector_complexity(row.model, recipe, **options)
        metrics |= {DENSE_PARAMETERS.key: cost.parameters / 1e6, DENSE_MACS.key: cost.macs / 1e9}
    return Record(
        ablation=ablation.name,
        row=row.key,
        kind="count",
        status="done",
        metrics=metrics,
        model=row.model,
        options=options,
        commit=commit(),
    )


def time_rows(ablation: Ablation, rows: Sequence[Row]) -> list[Record]:
    """The ablation's timings of `rows`, all measured in one run."""
    assert ablation.timing is not None
    measured = ablation.timing(rows)
    return [
        Record(
            ablation=ablation.name,
            row=row.key,
            kind="timing",
            status="done",
            metrics=dict(measured[row.key]),
            model=row.model,
            options=get_scale(PAPER.name, ablation).options_for(row),
            hardware=hardware(),
            versions=versions(),
            commit=commit(),
        )
        for row in rows
    ]


def is_timed(ablation: Ablation, rows: Sequence[Row], folder: Path) -> bool:
    """Whether records in `folder` hold timings of all `rows` on this hardware, and on a GPU every column of theirs."""
    paths = [folder / "runs" / record_name(row.key, "timing", hardware=hardware()) for row in rows]
    if not all(path.exists() for path in paths):
        return False
    wanted = {metric.key for metric in ablation.metrics if metric.on_gpus and torch.cuda.is_available()}
    records = [read_record(path) for path in paths] if wanted else []
    return wanted <= {key for record in records if record for key in record.metrics}


@rank_zero_only
def measure(ablation: Ablation, rows: Sequence[Row], folder: Path, timing: bool) -> None:
    """Count every row that has no such record yet; where asked, time all rows anew unless all have been timed."""
    runs = folder / "runs"
    if ablation.has("count"):
        for row in rows:
            path = runs / record_name(row.key, "count")
            record = read_record(path) if path.exists() else None
            if record is None or not ablation.keys("count") <= set(record.metrics):
                write_record(count(ablation, row), runs)
    if timing and ablation.timing:
        for record in () if is_timed(ablation, rows, folder) else time_rows(ablation, rows):
            write_record(record, runs)
