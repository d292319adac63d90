"""What an ablation's file says of its cost is what the committed records took."""

import importlib
import inspect
import re
import statistics
from pathlib import Path

import pytest

from ablations.records.record import read_records
from ablations.registry import all_ablations

RESULTS = Path(__file__).resolve().parents[3] / "results"
PATTERN = (
    r"about ([\d.]+) minutes of training a row and seed at `small` on (one thread|two threads) of an (.+) with (\w+)"
)
THREADS = {"one thread": "1 threads", "two threads": "2 threads"}


def cost_of(name):
    *_, last = inspect.getdoc(importlib.import_module(f"ablations.tables.{name}")).split("\n\n")
    return " ".join(last.split())


def minutes(ablation, hardware):
    """Median over trained rows and seeds, with a transfer's classifier; None without records."""
    trained, spent = {row.key for row in ablation.rows if row.trained}, {}
    for record in read_records(RESULTS / ablation.name / "runs"):
        if record.scale == "small" and record.hardware == hardware and record.row in trained:
            spent.setdefault((record.row, record.seed), []).append(record.seconds / 60)
    return statistics.median(sum(of) for of in spent.values()) if spent else None


@pytest.mark.parametrize("name", all_ablations())
def test_the_cost_of_an_ablation_is_that_of_its_records(name):
    ablation, cost = all_ablations()[name], cost_of(name)
    assert cost.startswith(f"Cost: `python -m ablations.run {name}")
    assert "Cost:" not in ablation.notes
    said = re.search(PATTERN, cost)
    trains = ablation.records_of == () and ablation.has("train") | ablation.has("transfer")
    measured = any(record.scale == "small" for record in read_records(RESULTS / name / "runs"))
    assert bool(said) == (trains and measured)
    assert cost.endswith("not measured yet.") == (trains and not measured)
    assert all(f"`{home.name}`" in cost for home in ablation.records_of)
    if said:
        spoken, threads, processor, instructions = said.groups()
        took = minutes(ablation, f"{processor}, {THREADS[threads]}, {instructions}")
        assert float(spoken) == round(2 * took) / 2, f"{took:.2f} minutes, said to the nearest half"
