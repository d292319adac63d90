import json
import shutil
from pathlib import Path

import pytest

from ablations.registry import get_ablation
from ablations.report.render import render
from ablations.runner.profile import count, time_rows
from ablations.spec import Row
from ablations.tables.table6 import table6

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("table", "row", "parameters", "macs"),
    [
        ("table5", "replknet31", 79_388_776, 15.354),  # every BN folded; multiply-adds of the merged net, in 10^9
        ("table6", "replknet31b-384", 79_388_776, 45.119),
        ("table11", "k13", None, 0.6691),
    ],
)
def test_rows_count_the_papers_models(table, row, parameters, macs):
    ablation = get_ablation(table)
    record = count(ablation, *ablation.select([row]))
    if parameters:
        assert round(record.metrics["parameters"] * 1e6) == parameters
    assert record.metrics["macs"] == pytest.approx(macs, rel=1e-4)


def test_timed_rows_name_the_machine(monkeypatch):
    monkeypatch.setattr("ablations.tables.table6.batch_size", lambda: 1)
    row = Row("tiny", "replknet_3", resolution=32, dims=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    (record,) = time_rows(table6, [row])
    assert record.kind == "timing"
    assert record.metrics["throughput"] > 0
    assert record.hardware
    assert record.filename.startswith("tiny.timing.")


def test_a_gpu_is_timed_in_bf16_too_and_the_table_shows_it(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    timed = lambda jobs, *_, precision: dict.fromkeys(jobs, len(precision))  # noqa: E731
    monkeypatch.setattr("ablations.tables.table6.throughput", timed)
    found = table6.timing([table6.rows[0]])
    assert found == {"replknet31b-224": {"throughput": 4, "throughput_bf16": 4}}
    monkeypatch.undo()
    results = ROOT / "results" / "table6"
    assert "images/s in bf16" not in (results / "table.md").read_text()
    shutil.copytree(results / "runs", tmp_path / "runs")
    timed = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("replknet31b-224.timing"))
    record = json.loads(timed.read_text())
    record["metrics"]["throughput_bf16"] = 2345.6
    timed.write_text(json.dumps(record))
    render(table6, tmp_path)
    head, *lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert "images/s in bf16, measured here on" in head
    assert "2345.6" in lines[1]
