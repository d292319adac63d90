"""How numbers, seeds and tables are spelled, in Markdown and CSV."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from ablations.spec import Metric

NOT_RUN = "—"
STALE = " †"


def number(value: float | None, metric: Metric) -> str:
    """`value` with as many digits as `metric` has, or `—`."""
    return NOT_RUN if value is None else f"{value:.{metric.digits}f}"


def name_seeds(seeds: list[int]) -> str:
    """`seed 3`, `seeds 0–2` or `seeds 0, 2`, of seeds in order."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """A CSV file, one line a row."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def markdown_table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])
