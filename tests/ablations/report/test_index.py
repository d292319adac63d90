from dataclasses import asdict, replace

import pytest

from ablations.paper import paper_values
from ablations.records.fingerprint import data_fingerprints
from ablations.records.record import Record, write_record
from ablations.registry import all_ablations
from ablations.report.index import headlines, index, outdated, write_index
from ablations.report.render import render
from ablations.scales import SMALL
from ablations.spec import ADDITION
from ablations.tables.guideline2 import guideline2

TOP1 = {"k3-shortcut": 97.0, "k13-shortcut": 96.0, "k3-plain": 94.0, "k13-plain": 90.0}


@pytest.fixture
def results(tmp_path):
    for row in guideline2.rows:
        base = Record(
            ablation="guideline2", row=row.key, kind="train", status="done", metrics={}, model=row.model,
            options=SMALL.options_for(row), recipe=asdict(guideline2.recipe_of(row, SMALL)), scale="small",
            seconds=36.0, data="scenes-solid", hardware="a CPU", commit="abc",
            data_fingerprint=data_fingerprints()["scenes-solid"]["56"],
        )  # fmt: skip
        for seed in (0, 1):
            top1 = TOP1[row.key] - seed * (row.key == "k13-plain")
            write_record(replace(base, seed=seed, metrics={"top1": top1}), tmp_path / "guideline2" / "runs")
    return tmp_path


def test_a_line_a_table_with_claim_verdict_and_number(results):
    page = index(results)
    assert (
        "| [Table 2](guideline2/table.md) | without shortcuts, 13×13 is worse than 3×3 "
        "| undecided (P = 0.96; about 1 more seeds) | 0 of 3 hold "
        "| top-1 that 13×13 loses without shortcuts (points) | 14.7 | 4.5 ± 0.7 | scenes-solid, scale small, a CPU |"
    ) in page
    assert all(f"]({name}/table.md)" in page for name in all_ablations())
    assert (
        "- [Table 2](guideline2/table.md): with shortcuts, 13×13 is better than 3×3: fails (2 seeds): "
        "−1.00 (−1.00 to −1.00) points on scenes-solid." in page
    )
    assert "- [Table 4](guideline5/table.md): enlarging the last stage" in page.partition("want of numbers")[2]
    assert "- scale small on a CPU: 8 runs, 0.1 hours of training" in page
    assert "Older than the code" not in page


def test_stale_numbers_are_listed(results):
    path = results / "guideline2" / "runs" / "k13-plain.small.scenes-solid.seed0.json"
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.1'))
    page = index(results)
    assert "## Older than the code" in page
    assert "- `k13-plain`, seed 0: lr 0.1, now 0.05" in page
    assert "| 4.5 ± 0.7 † |" in page


def test_discrepancies_show_the_papers_count_beside_ours(results):
    folder = results / "table11" / "runs"
    counted = {"macs": 0.4665, "parameters": 4.0}
    options = {"kernel_size": 9}
    write_record(
        Record(
            ablation="table11", row="k9", kind="count", status="done", metrics=counted, model="mobilenetv2_lk",
            options=options,
        ),
        folder,
    )  # fmt: skip
    assert "9×9, multiply-adds (G): paper 0.319, ours 0.4665" in index(results)


def test_pictures_and_sweeps_that_are_there_are_shown(results):
    assert "![" not in index(results)
    for name in ("figure1/figure1.png", "sweeps/kernels/table.md", "sweeps/kernels/pareto.png"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("")
    page = index(results)
    assert "(figure1/figure1.png)" in page
    assert "[kernels](sweeps/kernels/table.md)" in page
    assert "![pareto](sweeps/kernels/pareto.png)" in page


def test_the_page_is_a_pure_function_and_an_edit_is_found(results):
    render(guideline2, results / "guideline2")
    page = write_index(results)
    assert outdated(results) == []
    page.write_text(page.read_text().replace("holds", "fails"))
    assert outdated(results) == [page]


def test_the_verdicts_fit_a_terminal(results):
    assert headlines(results, ["guideline2", "table7"]) == (
        "Table 2     without shortcuts, 13×13 is worse than 3×3: "
        "undecided (P = 0.96; about 1 more seeds) on scenes-solid, scale small, a CPU\n"
        "Table 7     RepLKNet-31B outperforms Swin-B by more than two points of single-scale mIoU: —"
    )


@pytest.mark.parametrize("name", all_ablations())
def test_one_number_stands_for_a_table_and_the_paper_prints_it(name):
    ablation = all_ablations()[name]
    assert sum(claim.number is not None for claim in ablation.claims) == 1
    printed = ablation.source not in ("Figure 5", "Figure 6", "Appendix A", ADDITION)
    assert (ablation.headline.value(paper_values(ablation)) is not None) == printed
