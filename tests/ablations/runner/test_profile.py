import pytest

from ablations.registry import get_ablation
from ablations.runner.profile import count, time_rows
from ablations.spec import Row
from ablations.tables.table6 import table6


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
