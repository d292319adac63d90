"""How long runs may take: what like runs took, by their records."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.registry import all_ablations
from ablations.report.results import records_of
from ablations.runner.runs import Run, Transfer
from ablations.scales import SMALL

Key = tuple[str | None, ...]


@dataclass(frozen=True)
class Estimates:
    """Seconds of training of recorded runs, by what they are of."""

    seconds: dict[Key, list[float]]

    @classmethod
    def of(cls, folder: Path) -> "Estimates":
        """From the records in `folder` and from those that are committed."""
        found: dict[Key, list[float]] = {}
        folders = {folder.resolve(), SMALL.results.resolve()}
        records = [
            record
            for where in sorted(folders)
            for name, ablation in all_ablations().items()
            if not ablation.records_of
            for record in records_of(ablation, where / name)
        ]
        for record in records:
            if record.scale and record.seconds is not None:
                for key in _keys(record.ablation, record.row, record.model, record.kind, record.scale):
                    found.setdefault(key, []).append(record.seconds)
        return cls(found)

    def seconds_of(self, run: Run) -> float | None:
        """Mean of the same row's runs, else of the same net's, else of the same table's; None if there are none.

        What a transfer starts from is added if it is not recorded itself.
        """
        keys = _keys(run.ablation.name, run.row.key, run.row.model, run.kind, run.scale.name)
        own = next((statistics.fmean(self.seconds[key]) for key in keys if key in self.seconds), None)
        if isinstance(run, Transfer) and run.pretraining and not run.ablation.has("train"):
            before = self.seconds_of(run.pretraining)
            return None if own is None or before is None else own + before
        return own

    def total(self, runs: Iterable[Run]) -> float:
        """Sum over `runs`; those without an estimate count as a minute."""
        return sum(60 if (seconds := self.seconds_of(run)) is None else seconds for run in runs)

    def spoken(self, runs: Sequence[Run]) -> str:
        """The sum for people, with how many runs it does not know."""
        known = [run for run in runs if self.seconds_of(run) is not None]
        if not runs:
            return "nothing to wait for"
        if not known:
            return "time unknown"
        rest = f" and {len(runs) - len(known)} of unknown length" if len(known) < len(runs) else ""
        return f"about {spoken(self.total(known))}{rest}"


def _keys(ablation: str, row: str, model: str, kind: str, scale: str) -> list[Key]:
    """From the most special to the most general."""
    return [(scale, kind, ablation, row), (scale, kind, None, model), (scale, kind, ablation, None)]


def spoken(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
