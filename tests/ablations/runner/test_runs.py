from dataclasses import asdict, replace

import pytest

from ablations.paper import paper_values
from ablations.records.fingerprint import data_fingerprints
from ablations.records.record import Record, read_records, write_record
from ablations.registry import get_ablation
from ablations.report.posterior import Verdict
from ablations.report.render import render
from ablations.report.results import Results, Setting
from ablations.report.verdicts import partners, verdict
from ablations.run import main
from ablations.runner.plan import plan
from ablations.runner.profile import count
from ablations.runner.runs import data_name
from ablations.scales import get_scale
from ablations.spec import MIOU, TOP1
from ablations.tables.guideline3 import guideline3
from ablations.tables.guideline4 import guideline4
from ablations.tables.table5 import table5
from ablations.tables.table9 import table9
from replk_lightning.data import CLASSIFICATION, DATA, DETECTION, SEGMENTATION, TASK_OF, data_for_recipe
from replk_lightning.recipes import fcos_2x, replknet_120ep, upernet_ade20k_80k


def planned(name, scale="small", **wanted):
    ablation = get_ablation(name)
    return plan(ablation, ablation.rows, get_scale(scale, ablation), **wanted)


def record(row, kind, seed, **metrics):
    (run,) = [run for run in planned("guideline3") if (run.row.key, run.kind) == (row, kind)]
    return Record(
        ablation="guideline3", row=row, kind=kind, status="done", metrics=metrics, model=run.row.model, seed=seed,
        options=run.scale.options_for(run.row), recipe=asdict(run.recipe), scale="small", data=run.data,
        data_fingerprint=data_fingerprints()[run.data][str(run.recipe.resolution)], hardware="a CPU",
    )  # fmt: skip


def test_a_row_is_trained_and_then_carried_over():
    runs = planned("table5", seeds=[0])
    assert [run.kind for run in runs] == ["train", "transfer"] * 5
    for first, second in zip(runs[::2], runs[1::2], strict=True):
        assert second.pretraining == first
        assert (first.data, second.data) == ("scenes-solid", "scenes-solid-masks")
    assert runs[0].record_name == "replknet3.small.scenes-solid.seed0.json"
    assert runs[1].record_name == "replknet3.transfer.small.scenes-solid-masks.seed0.json"


def test_below_paper_a_row_pretrained_on_larger_data_needs_weights():
    own = {"replknet31b", "replknetxl"}
    assert {run.row.key for run in planned("table8")} == own
    given = planned("table8", init={"replknet31l-22k": "some.pth"})
    assert {run.row.key for run in given} == own | {"replknet31l-22k"}
    assert {run.init for run in given if run.row.key not in own} == {"some.pth"}


def test_at_paper_the_recipes_own_data_are_taken_and_dense_tables_need_weights():
    assert planned("table5", "paper")[1].data == "ade20k"
    assert planned("guideline3", "paper")[1].data == "cityscapes"
    detection = planned("table9", "paper", init={"replknet31b": "some.pth"})
    assert {run.data for run in detection} == {"coco"}
    assert all(run.pretraining is None for run in detection)
    assert {run.row.key: run.init for run in detection}["replknet31b"] == "some.pth"


def test_a_dense_table_at_paper_asks_for_its_checkpoint(tmp_path, capsys):
    assert main(["table7", "--scale", "paper", "--rows", "replknet31b", "--results", str(tmp_path)]) == 2
    assert "give its checkpoint with python -m ablations.run table7 --init replknet31b=PATH" in capsys.readouterr().err


def test_a_table_is_trained_carried_over_and_goes_on_from_its_records(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["guideline3", "--scale", "smoke", "--rows", "k3", "--accelerator", "cpu", "--results", "results"]
    assert main(command) == 0
    kinds = [r.kind for r in read_records(tmp_path / "results" / "guideline3" / "runs")]
    assert sorted(kinds) == ["train", "transfer"]
    assert "mIoU (%), ours: scenes-masks, scale smoke" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 runs, 2 of them recorded already" in capsys.readouterr().out


NEEDED = {"imagefolder": "imagefolder:some/where/", "masks": "masks:~/here", "hf": "hf:someone/pictures"}
RECIPES = {SEGMENTATION: upernet_ade20k_80k, DETECTION: fcos_2x, CLASSIFICATION: replknet_120ep}


@pytest.mark.parametrize("data", [*(NEEDED.get(kind, kind) for kind in DATA), "coco:here", "ade20k:~/here"])
def test_a_set_is_called_as_its_data_module_calls_it(data):
    recipe = RECIPES[TASK_OF.get(data.partition(":")[0], CLASSIFICATION)]()
    assert data_name(data) == data_for_recipe(data, recipe).name


def test_a_runs_file_name_makes_no_data(monkeypatch):
    monkeypatch.setattr("ablations.runner.runs.data_for_recipe", lambda *_: pytest.fail("made data"))
    assert {run.record_name for run in planned("table5", "paper", seeds=[0])} >= {
        "replknet3.paper.imagenet-1k.seed0.json", "replknet3.transfer.paper.ade20k.seed0.json"
    }  # fmt: skip


def test_from_scratch_nothing_is_pretrained_and_records_are_others(tmp_path, capsys, monkeypatch):
    scratch = planned("table5", seeds=[0], from_scratch=True)
    assert [(run.kind, run.pretraining, run.init) for run in scratch] == [("transfer", None, None)] * 5
    carried = planned("table5", seeds=[0])
    assert not {run.record_name for run in scratch} & {run.record_name for run in carried}
    assert scratch[0].record_name == "replknet3.transfer.small.scenes-solid-masks-from-scratch.seed0.json"
    assert not {run.folder for run in scratch} & {run.folder for run in carried}
    monkeypatch.chdir(tmp_path)
    command = ["guideline3", "--scale", "smoke", "--rows", "k3", "--accelerator", "cpu", "--results", "results"]
    assert main([*command, "--from-scratch", "--dry-run"]) == 0
    assert "start   from scratch, without pre-training" in capsys.readouterr().out
    assert main([*command, "--from-scratch"]) == 0
    assert "mIoU (%), ours: scenes-masks, from scratch, scale smoke" in capsys.readouterr().out
    (found,) = read_records(tmp_path / "results" / "guideline3" / "runs")
    assert (found.kind, found.data) == ("transfer", "scenes-masks, from scratch")


@pytest.mark.parametrize("wrong", [["guideline2"], ["table5", "--init", "replknet3=x.pth"]])
def test_from_scratch_is_for_what_is_carried_over(wrong, capsys):
    assert main([*wrong, "--from-scratch"]) == 2
    assert "--from-scratch is for segmentation and detection" in capsys.readouterr().err


def test_claims_leave_out_what_was_trained_from_scratch():
    carried = record("k3", "transfer", 0, miou=50.0)
    scratch = replace(carried, data="scenes-solid-masks, from scratch", metrics={"miou": 10.0})
    results = Results(guideline4, [record("k3", "train", 0, top1=90.0), carried, scratch])
    setting = Setting("train", "small", "scenes-solid", "a CPU")
    assert partners(results, setting) == [Setting.of(carried)]


def test_claims_see_a_net_before_and_after_its_transfer():
    records = [record("k3", "train", 0, top1=90.0), record("k9-reparam", "train", 0, top1=91.0)]
    records += [record("k3", "transfer", 0, miou=50.0), record("k9-reparam", "transfer", 0, miou=54.0)]
    results = Results(guideline4, records)
    setting = Setting("train", "small", "scenes-solid", "a CPU")
    assert partners(results, setting) == [Setting("transfer", "small", "scenes-solid-masks", "a CPU")]
    assert verdict(guideline4.claims[0], results, setting).verdict == Verdict(3.0, seeds=1)
    assert verdict(guideline4.claims[1], results, setting).verdict is None


def test_a_gain_is_a_difference_seed_by_seed(tmp_path):
    values = {"k3": [90.0, 92.0], "k9-reparam": [91.0, 95.0]}
    records = [record(row, "train", seed, top1=v) for row, vs in values.items() for seed, v in enumerate(vs)]
    gain = next(row for row in guideline4.rows if row.key == "mobilenetv2-gain")
    setting = Setting("train", "small", "scenes-solid", "a CPU")
    assert Results(guideline4, records).samples(setting, gain, TOP1) == [1.0, 3.0]
    assert paper_values(guideline4)[MIOU.key][gain.key] == pytest.approx(3.99)
    for r in records:
        write_record(r, tmp_path / "guideline3" / "runs")
    table = render(guideline4, tmp_path / "guideline4")
    assert "| MobileNetV2, gain from 3×3 to 9×9 + 3×3 branch | 1.33 | 2.00 ± 1.41 |" in table
    assert (tmp_path / "guideline4" / "guideline4.png").exists()


def test_a_table_of_others_rows_names_their_ablations():
    assert guideline4.homes == (guideline3, table5)


def test_detectors_are_counted_beside_the_papers_numbers():
    row = table9.rows[0]
    printed = paper_values(table9)
    for metric, value in count(table9, row).metrics.items():
        assert value == pytest.approx(printed[metric][row.key], rel=0.01)
