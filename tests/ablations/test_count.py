import pytest

from ablations.count import count, time_rows
from ablations.spec import Ablation, Row, get_ablation
from ablations.tables.table6 import table6
from replk_lightning.recipes import replknet_120ep


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


def test_timed_rows_name_the_machine():
    row = Row("tiny", "replknet_3", resolution=32, dims=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    tiny = Ablation("tiny", "", "", "Table 0", replknet_120ep, table6.metrics, (row,))
    (record,) = time_rows(tiny, [row], batch_size=1)
    assert record.kind == "throughput"
    assert record.metrics["throughput"] > 0
    assert record.hardware
    assert record.options["batch_size"] == 1
