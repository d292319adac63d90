"""Parameters, multiply-adds and images/s of the paper's own models: what needs no training."""

from ablations.records import Record, commit, hardware, versions
from ablations.spec import Ablation, Row
from replk_lightning.measure.complexity import complexity
from replk_lightning.measure.latency import throughput


def resolution_of(ablation: Ablation, row: Row) -> int:
    """Side of the input in pixels at which the paper counts and times the row."""
    return row.resolution or (row.recipe or ablation.recipe)().resolution


def count(ablation: Ablation, row: Row) -> Record:
    """Parameters (millions, every BN folded) and multiply-adds (10^9, merged) on the meta device."""
    side = resolution_of(ablation, row)
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


def time_rows(ablation: Ablation, rows: list[Row], batch_size: int) -> list[Record]:
    """Images/s of every row's deployed net, all timed in turn in one run, medians."""
    jobs = {row.key: (row.model, resolution_of(ablation, row), row.options) for row in rows}
    rates = throughput(jobs, batch_size=batch_size)
    return [
        Record(
            ablation=ablation.name,
            row=row.key,
            kind="throughput",
            status="done",
            metrics={"throughput": rates[row.key]},
            model=row.model,
            options={**row.options, "batch_size": batch_size},
            hardware=hardware(),
            versions=versions(),
            commit=commit(),
        )
        for row in rows
    ]
