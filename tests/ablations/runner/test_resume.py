"""What an interrupted run goes on from, when that is damaged, of something else, or failed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm
from unplugged import UnpluggedBar, UnpluggedError

from ablations.runner.machine import Machine
from ablations.runner.runs import Run
from ablations.runner.train import train
from ablations.scales import SMOKE
from ablations.tables.guideline2 import guideline2

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
