"""Our numbers for one ablation: its records by setting, and which of them are stale."""

import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ablations.paper import Values
from ablations.records.record import Record, read_records
from ablations.report.formats import name_seeds
from ablations.runner.staleness import staleness
from ablations.spec import Ablation, Metric, Row


@dataclass(frozen=True)
class Setting:
    """A column of our numbers: what its records have in common.

    Of a timing, `hardware` is all that a record says; of a training the processor alone, whose threads and instruction
    set change what comes of it as another seed would.
    """

    kind: str
    scale: str | None
    data: str | None
    hardware: str | None

    @classmethod
    def of(cls, record: Record) -> "Setting":
        """The setting of one record."""
        hardware = record.hardware
        if hardware and record.kind != "timing":
            hardware = hardware.partition(",")[0]
        return cls(record.kind, record.scale, record.data, hardware)

    def describe(self, seeds: Iterable[int]) -> str:
        """For the head of a column."""
        if self.kind == "count":
            return "computed here"
        if self.kind == "timing":
            return f"measured here on {self.hardware}"
        return f"ours: {self.data}, scale {self.scale}, {name_seeds(sorted(seeds))}, {self.hardware}"


class Results:
    """Our numbers for one ablation, grouped by setting."""

    def __init__(self, ablation: Ablation, records: list[Record]) -> None:
        self.ablation = ablation
        self.by_setting: dict[Setting, dict[tuple[str, int | None], Record]] = {}
        for record in records:
            self.by_setting.setdefault(Setting.of(record), {})[record.row, record.seed] = record

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [record for records in self.by_setting.values() for record in records.values()]

    @cached_property
    def stale(self) -> "dict[tuple[str, ...], list[Record]]":
        """Records of other code, recipes or data than today's, by what has changed."""
        found: dict[tuple[str, ...], list[Record]] = {}
        for record in self.records:
            if changes := staleness(record, self.ablation.homes):
                found.setdefault(changes, []).append(record)
        return found

    def is_stale(self, setting: Setting, row: Row, metric: Metric) -> bool:
        """Whether a number in the cell of `row` and `metric` is older than what it measures."""
        rows = row.gain or (row.key,)
        old = [record for records in self.stale.values() for record in records]
        return any(Setting.of(r) == setting and r.row in rows and metric.key in r.metrics for r in old)

    @cached_property
    def current(self) -> "Results":
        """The same without what is stale."""
        old = [record for records in self.stale.values() for record in records]
        records = [record for record in self.records if record not in old]
        return Results(self.ablation, records) if old else self

    def settings(self, kind: str | None = None) -> list[Setting]:
        """Settings of one kind, or all, in a fixed order."""
        found = [setting for setting in self.by_setting if kind in (None, setting.kind)]
        return sorted(found, key=lambda s: (s.kind, s.scale or "", s.data or "", s.hardware or ""))

    def seeds(self, setting: Setting) -> list[int]:
        """The seeds that any row of `setting` has."""
        return sorted({seed for _, seed in self.by_setting[setting] if seed is not None})

    def samples(self, setting: Setting, row: Row, metric: Metric) -> list[float]:
        """One value a seed."""
        if row.gain:
            ahead, behind = (self._by_seed(setting, key, metric) for key in row.gain)
            return [ahead[seed] - behind[seed] for seed in sorted(ahead.keys() & behind.keys(), key=str)]
        return [value for _, value in sorted(self._by_seed(setting, row.key, metric).items(), key=str)]

    def _by_seed(self, setting: Setting, key: str, metric: Metric) -> dict[int | None, float]:
        found = self.by_setting[setting].items()
        return {
            seed: r.metrics[metric.key]
            for (row, seed), r in found
            if row == key and r.status == "done" and metric.key in r.metrics
        }

    def failures(self, setting: Setting, row: Row) -> int:
        """How many seeds of `row` failed."""
        return sum(key == row.key and r.status == "failed" for (key, _), r in self.by_setting[setting].items())

    def first(self, setting: Setting, row: Row) -> Record | None:
        """The finished record of `row` with the lowest seed."""
        done = [r for (key, _), r in self.by_setting[setting].items() if key == row.key and r.status == "done"]
        return min(done, key=lambda r: r.seed or 0, default=None)

    def values(self, settings: Iterable[Setting], seeds: Collection[int] = ()) -> Values:
        """Means over `seeds`, or over all, where the setting has seeds."""
        samples: dict[str, dict[str, list[float]]] = {}
        for setting in settings:
            for (row, its_seed), record in self.by_setting[setting].items():
                if record.status == "done" and (not seeds or its_seed is None or its_seed in seeds):
                    for metric, value in record.metrics.items():
                        samples.setdefault(metric, {}).setdefault(row, []).append(value)
        return {metric: {row: statistics.fmean(v) for row, v in rows.items()} for metric, rows in samples.items()}


def runs_of(ablation: Ablation, folder: Path) -> list[Path]:
    """Where the records behind `folder`, the results of `ablation`, lie."""
    return [folder.with_name(home.name) / "runs" for home in ablation.records_of] or [folder / "runs"]


def records_of(ablation: Ablation, folder: Path) -> list[Record]:
    """The records behind `folder` of the rows that `ablation` shows."""
    shown = {row.key for row in ablation.rows}
    return [r for runs in runs_of(ablation, folder) for r in read_records(runs) if r.row in shown]
