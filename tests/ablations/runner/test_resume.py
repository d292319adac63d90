"""What an interrupted run goes on from, when that is damaged, of something else, or failed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm
from unplugged import UnpluggedBar, UnpluggedError

from ablations.records.record import read_records
from ablations.run import main
from ablations.runner.machine import Machine
from ablations.runner.runs import Run, transfer_of
from ablations.runner.scheduler import Scheduler
from ablations.runner.train import has_weights, train
from ablations.scales import SMOKE
from ablations.tables.guideline2 import guideline2
from ablations.tables.guideline3 import guideline3

CPU = Machine(accelerator="cpu")
SILENT = tqdm(disable=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_of(epochs=2, **overrides):
    recipe = {"mobilenetv2": {**SMOKE.recipe["mobilenetv2"], "epochs": epochs, **overrides}}
    return Run(guideline2, guideline2.rows[0], replace(SMOKE, recipe=recipe), "generated", seed=5)


def weights(run):
    return torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"]


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_record_says_in_how_many_parts_its_run_was_trained(monkeypatch, ema):
    run = run_of(3, ema=ema)
    unbroken = train(run, CPU, SILENT)
    expected = weights(run)
    assert unbroken.parts == 1
    monkeypatch.setattr("ablations.runner.runs.WORK", Path("again"))
    with pytest.raises(UnpluggedError):
        train(run, CPU, UnpluggedBar(total=3))
    resumed = train(run, CPU, SILENT)
    assert (resumed.parts, resumed.metrics) == (2, unbroken.metrics)
    assert equal(weights(run), expected)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    other = replace(run_of(1), seed=7)
    train(other, CPU, SILENT)
    path.write_bytes((other.folder / "last.ckpt").read_bytes())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "it is damaged"),
        (flip, "wrong checksum"),
        (lambda path: path.write_bytes(b""), "it is damaged"),
        (swap, "another experiment's"),
    ],
    ids=["cut", "flipped", "empty", "swapped"],
)
def test_a_checkpoint_that_will_not_do_is_named_and_the_run_starts_over(damage, said):
    run = run_of()
    first = train(run, CPU, SILENT)
    expected = weights(run)
    damage(run.folder / "last.ckpt")
    with pytest.warns(UserWarning, match=rf"last\.ckpt is ignored, .*{said}.*: row 'k3-shortcut', seed 5, starts over"):
        again = train(run, CPU, SILENT)
    assert (again.parts, again.metrics) == (1, first.metrics)
    assert equal(weights(run), expected)


def test_torn_weights_are_trained_again():
    run = Run(guideline3, guideline3.rows[0], guideline3.scales["smoke"], "generated", 0)
    transfer, scheduler = transfer_of(run, None, None), Scheduler(CPU, SILENT, lambda *_: None)
    scheduler.work([transfer])
    whole = torch.load(run.weights, weights_only=True)["state_dict"]
    cut(run.weights)
    with pytest.warns(UserWarning, match=r"\.pt is ignored, it is damaged .*: row 'k3' is trained again"):
        scheduler.work([transfer])
    assert equal(torch.load(run.weights, weights_only=True)["state_dict"], whole)


def test_weights_of_another_recipe_are_not_taken_for_this_ones():
    run = Run(guideline3, guideline3.rows[0], guideline3.scales["smoke"], "generated", 0)
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
