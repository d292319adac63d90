"""What needs no training: parameters and multiply-adds of the paper's own models, and timings on this machine."""

from collections.abc import Sequence

from ablations.records import Record, commit, hardware, versions
from ablations.spec import Ablation, Row
from replk_lightning.measure.complexity import complexity


def count(ablation: Ablation, row: Row) -> Record:
    """Parameters (millions, every BN folded) and multiply-adds (10^9, merged) on the meta device."""
    side = ablation.resolution_of(row)
    cost = complexity(row.model, (3, side, side), folded=True, **row.options)
    return Record(
        ablation=ablation.name,
        row=row.key,
        kind="count",
        status="done",
        metrics={"parameters": cost.parameters / 1e6, "macs": cost.macs / 1e9},
        model=row.model,
        options=row.options,
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
            options=row.options,
            hardware=hardware(),
            versions=versions(),
            commit=commit(),
        )
        for row in rows
    ]
