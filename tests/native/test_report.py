"""The compiler's verdict on every kernel: no stack, no spills, the instruction mix that the design counts on."""

import dataclasses
import itertools
import json

import pytest

from native import gpu_plans, report
from native.check import NUMBERS
from native.geometry import same_padding

pytestmark = pytest.mark.skipif(report.why_not() is not None, reason=report.why_not() or "")


WANTED = ("forward-64x64-k31", "grad_weight-64x64-k31")
LAST = ("forward-last-64x64-k31", "grad_weight-last-64x64-k31")


@pytest.fixture(scope="module")
def rows():
    """The largest kernels' rows by architecture."""
    chosen = [(v, c) for c in report.ARCHITECTURES for v in report.variants(c) if v.name in WANTED]
    chosen += [(v, 90) for v in report.variants(90, ("float16",)) if v.name in LAST]
    found = report.read_all(chosen)
    return {c: [row for row in found if row["arch"] == f"sm_{c}"] for c in report.ARCHITECTURES}


def pick(rows, capability, name, dtype):
    (row,) = (r for r in rows[capability] if (r["name"], r["dtype"]) == (name, dtype))
    return row


@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_no_kernel_has_a_stack_or_spills(rows, capability):
    assert len(rows[capability]) == {75: 4, 90: 8}.get(capability, 6)
    for row in rows[capability]:
        assert row["stack"] == row["spills"] == 0, row
        assert row["blocks_per_sm"] >= 1, row


@pytest.mark.slow
@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_no_kernel_of_any_shape_has_a_stack_or_spills(capability):
    rows = report.read_all([(v, capability) for v in report.variants(capability, tuple(NUMBERS))])
    planes = [row for row in rows if "last" not in str(row["name"])]
    assert len(planes) == 3 * len(report.SHAPES) * (len(NUMBERS) - (capability < 80))
    assert len(rows) > len(planes)  # on the smallest GPUs not all shapes fit in channels_last
    for row in rows:
        assert row["stack"] == row["spills"] == 0, row


@pytest.mark.slow
@pytest.mark.parametrize("capability", report.ARCHITECTURES)
@pytest.mark.parametrize("kernel", [(101, 101), (127, 127), (5, 127), (5, 51)])
def test_the_largest_filters_have_no_stack_and_no_spills(capability, kernel):
    here, found = report.target(capability), []
    for size, number in itertools.product((64, 128), ("float16", "tf32", "float32")[:: 1 + (capability < 80)]):
        geometry = ((1, 1), same_padding(kernel, (1, 1)), (1, 1))
        p = gpu_plans.problem((64, 384, size, size), NUMBERS[number], kernel, *geometry)
        p = dataclasses.replace(p, tf32=number == "tf32")
        if gpu_plans.why_no_plan(p, here) is None:
            found += [report.Variant("", p, gpu_plans.plan(f, p, False, here).launches[0]) for f in gpu_plans.PLANS]
    for row in report.read_all([(variant, capability) for variant in found]):
        assert row["stack"] == row["spills"] == 0, row


@pytest.mark.parametrize("capability", [c for c in report.ARCHITECTURES if c != 75])
def test_the_forward_loop_at_64_is_dense(rows, capability):
    half, tf32, full = (
        pick(rows, capability, "forward-64x64-k31", d)["hot_loop"] for d in ("float16", "tf32", "float32")
    )
    assert half["HMMA"] / (half["LDS"] + half["LDSM"]) >= 2.8
    # In tf32 two copies of the filter's rows, and with them 3.8, need the shared memory of an H100.
    assert tf32["HMMA"] / (tf32["LDS"] + tf32["LDSM"]) >= (2.8 if capability in (90, 100) else 2.4)
    assert full["FFMA"] / sum(full.values()) >= 0.88


@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_two_blocks_share_a_multiprocessor_at_64(rows, capability):
    for row in rows[capability]:
        if row["name"] == LAST[0]:  # eight channels of planes and their filters
            continue
        # The tensor cores' weight gradient: 16 warps of more than 64 registers, as many as two blocks of 8.
        alone = row["kernel"] == "toeplitz_weight"
        assert row["blocks_per_sm"] * row["threads"] >= 512 if alone else row["blocks_per_sm"] >= 2, row


def test_json_is_the_documented_object(monkeypatch, capsys):
    monkeypatch.setattr(report, "SHAPES", ((16, 3),))
    assert report.main(["--arch", "sm_80", "--json"]) == 0
    variants = json.loads(capsys.readouterr().out)["variants"]
    assert {v["dtype"] for v in variants} == {"float16", "tf32", "float32"}
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
