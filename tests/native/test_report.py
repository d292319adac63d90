"""The compiler's verdict on every kernel: no stack, no spills, the instruction mix that the design counts on."""

import json

import pytest

from native import plans, report

pytestmark = pytest.mark.skipif(report.why_not() is not None, reason=report.why_not() or "")


@pytest.fixture(scope="module")
def rows():
    def read(capability):
        wanted = ("forward-64x64-k31", "grad_weight-64x64-k31")
        return [report.read(v, capability) for v in report.variants(capability) if v.name in wanted]

    return {capability: read(capability) for capability in report.ARCHITECTURES}


@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_no_kernel_has_a_stack_or_spills(rows, capability):
    for row in rows[capability]:
        assert row["stack"] == row["spills"] == 0, row
        assert row["blocks_per_sm"] >= 1, row


@pytest.mark.slow
@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_no_kernel_of_any_shape_has_a_stack_or_spills(capability):
    for v in report.variants(capability, tuple(plans.ELEMENTS)):
        row = report.read(v, capability)
        assert row["stack"] == row["spills"] == 0, row


@pytest.mark.parametrize("capability", [c for c in report.ARCHITECTURES if c != 75])
def test_the_forward_loop_at_64_is_dense(rows, capability):
    (half, full) = (r for r in rows[capability] if r["name"] == "forward-64x64-k31")
    loop = half["hot_loop"]
    assert loop["HMMA"] / (loop["LDS"] + loop["LDSM"]) >= 2.8
    assert full["hot_loop"]["FFMA"] / sum(full["hot_loop"].values()) >= 0.88


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_two_blocks_share_a_multiprocessor_at_64(rows, capability):
    row = next(r for r in rows[capability] if r["name"] == "forward-64x64-k31")
    assert row["blocks_per_sm"] >= 2


def test_json_is_the_documented_object(monkeypatch, capsys):
    monkeypatch.setattr(report, "SHAPES", ((16, 3),))
    assert report.main(["--arch", "sm_80", "--json"]) == 0
    variants = json.loads(capsys.readouterr().out)["variants"]
    assert {v["dtype"] for v in variants} == {"float16", "float32"}
    wanted = {
        "name",
        "arch",
        "dtype",
        "registers",
        "stack",
        "spills",
        "shared",
        "blocks_per_sm",
        "hot_loop",
        "issued_useful",
    }
    assert wanted <= set(variants[0])
    assert report.main(["--arch", "sm_80"]) == 0
    assert "predicted" in capsys.readouterr().out
