import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.registry import get_ablation
from ablations.report.render import render
from ablations.runner.profile import count, measure, time_rows
from ablations.spec import Row
from ablations.tables.guideline1_network import guideline1_network
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


FORMS = {"": ("fp32", False), "_bf16": ("bf16", False), "_compiled": ("fp32", True), "_bf16_compiled": ("bf16", True)}


def test_a_gpu_is_timed_in_bf16_and_by_torch_compile_too_and_a_cpu_is_not(monkeypatch):
    timed = lambda jobs, *_, precision, compiled: dict.fromkeys(jobs, (precision, compiled))  # noqa: E731
    monkeypatch.setattr("ablations.tables.table6.throughput", timed)
    share = lambda *_, stock, precision, compiled: (precision, compiled)  # noqa: E731
    monkeypatch.setattr("ablations.tables.guideline1_network.depthwise_share", share)
    for on_gpu, forms in ((True, FORMS), (False, {"": ("fp32", False)})):
        monkeypatch.setattr("torch.cuda.is_available", lambda on_gpu=on_gpu: on_gpu)
        found = table6.timing([table6.rows[0]])
        assert found == {"replknet31b-224": {f"throughput{suffix}": form for suffix, form in forms.items()}}
        found = guideline1_network.timing(guideline1_network.select(["share-ours"]))
        assert found == {"share-ours": {f"percent{suffix}": form for suffix, form in forms.items()}}


def test_what_was_timed_before_a_gpu_had_all_columns_is_timed_again(monkeypatch, tmp_path):
    times = []
    timed = replace(guideline1_network, timing=lambda rows: times.append(len(rows)) or values)
    rows = timed.rows
    values = {row.key: {"percent": 1.0} for row in rows}
    measure(timed, rows, tmp_path, timing=True)
    measure(timed, rows, tmp_path, timing=True)
    assert times == [4]  # a CPU has one column
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    measure(timed, rows, tmp_path, timing=True)
    values = {row.key: {f"percent{suffix}": 1.0 for suffix in FORMS} for row in rows[2:]} | {
        row.key: {"percent": 1.0} for row in rows[:2]
    }
    measure(timed, rows, tmp_path, timing=True)
    measure(timed, rows, tmp_path, timing=True)
    assert times == [4, 4, 4]


@pytest.mark.parametrize("words", ["in bf16", "by torch.compile", "in bf16 by torch.compile"])
def test_the_table_shows_what_a_gpu_was_timed_in(words, tmp_path):
    results = ROOT / "results" / "table6"
    assert f"images/s {words}" not in (results / "table.md").read_text()
    (key,) = (metric.key for metric in table6.metrics if metric.label == f"images/s {words}")
    shutil.copytree(results / "runs", tmp_path / "runs")
    timed = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("replknet31b-224.timing"))
    record = json.loads(timed.read_text())
    record["metrics"][key] = 2345.6
    timed.write_text(json.dumps(record))
    render(table6, tmp_path)
    head, *lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert head.count("measured here on") == 3
    assert f"images/s {words}, measured here on" in head
    assert "2345.6" in lines[1]
