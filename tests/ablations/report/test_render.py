import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ablations.paper import paper_numbers, paper_values
from ablations.records.fingerprint import data_fingerprints
from ablations.records.record import Record, write_record
from ablations.registry import all_ablations, get_ablation
from ablations.report.index import outdated
from ablations.report.posterior import Verdict
from ablations.report.render import render, stale
from ablations.report.results import Results
from ablations.report.verdicts import verdict
from ablations.scales import SMALL
from ablations.spec import ADDITION
from ablations.tables.guideline2 import guideline2

RESULTS = Path(__file__).resolve().parents[3] / "results"
NUMBERLESS = {"Figure 5", "Figure 6", "Appendix A", ADDITION}  # pictures and remarks without a printed number

MACHINES = [("a CPU, 1 threads, AVX2", 90), ("a CPU, 1 threads, AVX512", 91), ("another, 2 threads, AVX2", 92)]
TOP1 = {"k3-shortcut": 97.0, "k13-shortcut": 96.0, "k3-plain": 94.0, "k13-plain": 90.0}


def record(row, seed, top1, **changes):
    (spec,) = guideline2.select([row])
    base = Record(
        ablation="guideline2", row=row, kind="train", status="done", metrics={"top1": top1}, model="mobilenetv2_lk",
        options=SMALL.options_for(spec), recipe=asdict(guideline2.recipe_of(spec, SMALL)), scale="small",
        data="scenes-solid", seed=seed, hardware="a CPU", seconds=1.0,
        data_fingerprint=data_fingerprints()["scenes-solid"]["56"],
    )  # fmt: skip
    return replace(base, **changes)


def three_seeds():
    return [record(row, seed, top1 + seed) for row, top1 in TOP1.items() for seed in range(3)]


def setting(results):
    (only,) = results.settings("train")
    return only


def test_the_table_shows_paper_and_ours_apart(tmp_path):
    for r in three_seeds():
        write_record(r, tmp_path / "runs")
    table = render(guideline2, tmp_path)
    assert "| 3×3, shortcuts | 71.76 | 98.00 ± 1.00 |" in table
    assert "| 13×13, no shortcuts | 53.98 | 91.00 ± 1.00 |" in table
    assert "ours: scenes-solid, scale small, seeds 0–2, a CPU" in table
    # three seeds that agree to the last digit
    sure = "holds (3 seeds): +4.00 (+4.00 to +4.00) points"
    assert f"without shortcuts, 13×13 is worse than 3×3 | +14.69 points | {sure} |" in table
    refuted = "fails (3 seeds): −1.00 (−1.00 to −1.00) points"
    assert f"| with shortcuts, 13×13 is better than 3×3 | +0.77 points | {refuted} |" in table
    csv = (tmp_path / "table.csv").read_text().splitlines()
    assert "k3-shortcut,top1,ours,small,scenes-solid,a CPU,3,98.0,1.0," in csv
    assert "k3-shortcut,top1,paper,,,,,71.76,," in csv


def test_rendering_is_a_pure_function(tmp_path):
    for r in three_seeds():
        write_record(r, tmp_path / "runs")
    first = render(guideline2, tmp_path), (tmp_path / "table.csv").read_bytes()
    assert (render(guideline2, tmp_path), (tmp_path / "table.csv").read_bytes()) == first


def test_not_run_is_a_dash(tmp_path):
    table = render(guideline2, tmp_path)
    assert "| 3×3, shortcuts | 71.76 | — |" in table


def test_a_claim_that_seeds_disagree_on_is_undecided_and_more_seeds_would_tell():
    records = three_seeds()
    records[-1] = record("k13-plain", 2, 95.0)  # margins 4, 4 and 1
    results = Results(guideline2, records)
    found = verdict(guideline2.claims[1], results, setting(results))
    assert found.word == "undecided"
    assert found.verdict.margin == pytest.approx(3)
    assert str(found) == "undecided (P = 0.95; about 3 more seeds)"


def test_one_seed_gives_no_word():
    results = Results(guideline2, [record(row, 0, top1) for row, top1 in TOP1.items()])
    assert str(verdict(guideline2.claims[1], results, setting(results))) == "one seed"


def test_a_claim_without_its_numbers_has_no_verdict():
    results = Results(guideline2, [record("k3-plain", 0, 94.0)])
    assert str(verdict(guideline2.claims[1], results, setting(results))) == "—"


def test_seeds_that_lack_a_row_do_not_weigh_in_a_claim(tmp_path):
    lonely = [record("k3-plain", seed, 60.0) for seed in (1, 2)]
    results = Results(guideline2, [record("k3-plain", 0, 94.0), record("k13-plain", 0, 91.0), *lonely])
    assert verdict(guideline2.claims[1], results, setting(results)).verdict == Verdict(3.0, seeds=1)
    apart = Results(guideline2, [record("k13-plain", 0, 91.0), *lonely])
    assert verdict(guideline2.claims[1], apart, setting(apart)).verdict is None


def test_a_failed_run_is_printed_as_failed(tmp_path):
    failed = record("k13-plain", 0, 0, status="failed", metrics={}, reason="the loss became nan at step 7")
    write_record(failed, tmp_path / "runs")
    table = render(guideline2, tmp_path)
    assert "| 13×13, no shortcuts | 53.98 | failed |" in table
    assert "the loss became nan at step 7" in table


def test_a_mean_says_how_many_seeds_failed(tmp_path):
    for r in [*three_seeds(), record("k3-plain", 3, 0, status="failed", metrics={}, reason="NaN")]:
        write_record(r, tmp_path / "runs")
    assert "| 95.00 ± 1.00 (1 failed) |" in render(guideline2, tmp_path)


@pytest.mark.parametrize(
    ("kind", "columns"), [("train", {"a CPU": [90, 91], "another": [92]}), ("timing", {n: [v] for n, v in MACHINES})]
)
def test_a_column_is_of_one_processor_and_of_a_timing_of_one_machine(kind, columns):
    records = [record("k3-plain", seed, v, kind=kind, hardware=n) for seed, (n, v) in enumerate(MACHINES)]
    results, (row,) = Results(guideline2, records), guideline2.select(["k3-plain"])
    found = {s.hardware: results.samples(s, row, guideline2.metrics[0]) for s in results.settings(kind)}
    assert found == columns


@pytest.mark.parametrize("name", all_ablations())
def test_paper_numbers_and_rows_agree(name):
    ablation = get_ablation(name)
    numbers = {row: of for home in ablation.homes for row, of in paper_numbers().get(home.name, {}).items()}
    shown = {row.key for row in ablation.rows if row.trained or not ablation.homes[0].measure}  # no random nets
    shown -= {row.key for row in ablation.rows if row.gain}  # differences of others
    keys = {metric.key for metric in ablation.metrics}
    if len(ablation.homes) > 1:  # some rows and columns of others
        assert shown <= set(numbers)
    else:
        assert set(numbers) == shown or (ablation.source in NUMBERLESS and not numbers)
        assert all(set(values) <= keys for values in numbers.values())
    assert ablation.claims, "an ablation without a claim tests nothing"


@pytest.mark.parametrize("name", all_ablations())
def test_every_claim_holds_on_the_papers_own_numbers(name):
    # a claim is a sentence of the paper; one that its own numbers refute has been misread
    ablation = get_ablation(name)
    for claim in ablation.claims:
        margin = claim.margin(paper_values(ablation))
        assert margin is None if ablation.source in NUMBERLESS else margin > 0, claim.sentence


def test_committed_tables_follow_from_their_records():
    assert outdated(RESULTS) == []


def test_rendering_does_without_lightning():
    script = f"""
import sys
from pathlib import Path
import ablations.report.index, ablations.report.render
from ablations.registry import all_ablations
for name in ("guideline2", "figure5", "table7"):
    assert ablations.report.render.rendered(all_ablations()[name], Path({str(RESULTS)!r}) / name)
sys.exit("lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_edited_table_is_found(tmp_path):
    for r in three_seeds():
        write_record(r, tmp_path / "guideline2" / "runs")
    render(guideline2, tmp_path / "guideline2")
    assert stale(tmp_path) == []
    table = tmp_path / "guideline2" / "table.md"
    table.write_text(table.read_text().replace("98.00", "99.00"))
    assert stale(tmp_path) == [table]
