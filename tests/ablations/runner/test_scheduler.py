"""What a run needs is trained before it and once, and where that fails, so has the run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from ablations.records.record import read_records
from ablations.run import main
from ablations.runner.machine import Machine
from ablations.runner.runs import Run, Transfer, transfer_of
from ablations.runner.scheduler import Scheduler
from ablations.runner.train import has_weights, train
from ablations.scales import SMOKE
from ablations.spec import Row
from ablations.tables.appendix_a import appendix_a
from ablations.tables.guideline3 import guideline3

CPU = Machine(accelerator="cpu")
SILENT = tqdm(disable=True)
SHORT = {**SMOKE.recipe["replknet"], "batch_size": 16}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pretraining():
    return Run(guideline3, guideline3.rows[0], guideline3.scales["smoke"], "generated", 0)


def of_few_labels(key):
    (row,) = appendix_a.select([key])
    return Run(appendix_a, row, replace(SMOKE, recipe={"replknet": SHORT}), "generated", 5)


def trained(*runs):
    """The records of `runs`, in the order in which they come."""
    told = []
    Scheduler(CPU, SILENT, lambda run, record: told.append(record)).work(runs)
    return told


def test_the_backbone_starts_from_the_weights_that_were_trained_once():
    run = pretraining()
    transfer = transfer_of(run, None, None)
    assert isinstance(transfer, Transfer)
    told = []
    scheduler = Scheduler(CPU, SILENT, lambda *done: told.append(done))
    assert scheduler.work([transfer]) == []
    ((finished, record),) = told
    assert (finished, record.kind, record.status) == (transfer, "transfer", "done")
    task = transfer.make_task(transfer.make_data())
    task.setup("fit")
    trained = torch.load(run.weights, weights_only=True)["state_dict"]
    for name, value in task.model.backbone.net.model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, trained[f"model.{name}"]), name
    written = run.weights.stat().st_mtime_ns
    scheduler.work([transfer])
    assert run.weights.stat().st_mtime_ns == written


def test_torn_weights_are_trained_again():
    run = pretraining()
    transfer, scheduler = transfer_of(run, None, None), Scheduler(CPU, SILENT, lambda *_: None)
    scheduler.work([transfer])
    whole = torch.load(run.weights, weights_only=True)["state_dict"]
    run.weights.write_bytes(run.weights.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"\.pt is ignored, it is damaged .*: row 'k3' is trained again"):
        scheduler.work([transfer])
    again = torch.load(run.weights, weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_weights_of_another_recipe_are_not_taken_for_this_ones():
    run = pretraining()
    train(run, CPU, SILENT)
    assert has_weights(run)
    smaller = {"mobilenetv2": {**run.scale.recipe["mobilenetv2"], "batch_size": 8}}
    with pytest.warns(UserWarning, match="another experiment's: row 'k3' is trained again"):
        assert not has_weights(replace(run, scale=replace(run.scale, recipe=smaller)))


def test_a_failed_pre_training_fails_its_transfer_and_the_other_rows_go_on(capsys, monkeypatch):
    scale = guideline3.scales["smoke"]
    lost = {"mobilenetv2": {**scale.recipe["mobilenetv2"], "lr": 1e30}}
    monkeypatch.setitem(guideline3.scales, "smoke", replace(scale, recipe=lost))
    assert main(["guideline3", "--scale", "smoke", "--rows", "k3", "k9", "--accelerator", "cpu"]) == 2
    records = read_records(Path("runs/smoke/guideline3/runs"))
    assert sorted((r.row, r.kind) for r in records) == [
        (row, kind) for row in ("k3", "k9") for kind in ("train", "transfer")
    ]
    assert {r.status for r in records} == {"failed"}
    assert len({r.hardware for r in records}) == 1
    reasons = [r.reason for r in records if r.kind == "transfer"]
    assert all(
        f"row '{row}', seed 0, has nothing to start from: the " in reason
        for row, reason in zip(("k3", "k9"), reasons, strict=True)
    )
    output = capsys.readouterr()
    assert output.out.count("| failed |") == 4
    assert output.err.count("has nothing to start from") == 2
    assert main(["guideline3", "--scale", "smoke", "--rows", "k3", "k9", "--accelerator", "cpu"]) == 2
    assert "4 runs, 4 of them recorded already" in capsys.readouterr().out


def test_a_teacher_that_is_wanted_itself_is_trained_once_and_first(asked):
    teacher, taught = trained(of_few_labels("pseudo"), of_few_labels("tenth"))
    assert asked == [("tenth", 5), ("pseudo", 5)]
    assert "pseudo_top1" in taught.metrics
    assert "pseudo_top1" not in teacher.metrics


def test_a_teacher_that_failed_is_not_trained_again_for_every_pupil(asked):
    lost = replace(of_few_labels("pseudo"), scale=replace(SMOKE, recipe={"replknet": {**SHORT, "lr": 1e30}}))
    pupil = replace(lost, row=Row("pupil", lost.row.model, supervision=lost.row.supervision))
    first, second = trained(lost, pupil)
    assert asked == [("tenth", 5)]
    assert (first.status, second.status) == ("failed", "failed")
    assert second.reason.startswith("row 'tenth', seed 5, cannot label images for 'pupil': the ")


def test_a_teacher_that_diverged_is_one_sentence(capsys, monkeypatch):
    lost = {**SMOKE.recipe, "replknet": {**SHORT, "lr": 1e30}}
    monkeypatch.setitem(appendix_a.scales, "smoke", replace(SMOKE, recipe=lost))
    assert main(["appendix_a", "--scale", "smoke", "--accelerator", "cpu", "--rows", "pseudo"]) == 2
    error = capsys.readouterr().err
    assert "row 'tenth', seed 0, cannot label images for 'pseudo': the" in error
