import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import timm
import torch
from tqdm import tqdm
from unplugged import UnpluggedBar, UnpluggedError

from ablations import run as runner
from ablations.commands import run as command
from ablations.records.record import read_record
from ablations.registry import all_ablations
from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.runner.runs import Run
from ablations.runner.train import train
from ablations.scales import SCALES, SMOKE
from ablations.spec import Ablation, Row
from ablations.tables.guideline2 import guideline2
from ablations.tables.table5 import table5
from ablations.tables.table6 import table6
from replk_lightning.data import fashion_mnist
from replk_lightning.data.hub import offline
from replk_lightning.recipes import mobilenetv2_100ep

ROOT = Path(__file__).resolve().parents[3]
CPU = Machine(accelerator="cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def smoke(*arguments):
    return runner.main(["guideline2", "--scale", "smoke", "--accelerator", "cpu", *arguments])


def scale_of(epochs, **overrides):
    recipe = {"mobilenetv2": {**SMOKE.recipe["mobilenetv2"], "epochs": epochs, **overrides}}
    return replace(SMOKE, recipe=recipe)


def test_a_row_is_trained_once_and_its_table_printed(capsys, monkeypatch):
    assert smoke("--rows", "k3-shortcut") == 0
    first = capsys.readouterr().out
    assert "1 runs, 0 of them recorded already" in first
    assert re.search(r"\| 3×3, shortcuts \| 71.76 \| \d+\.\d\d \|", first)
    record = read_record(Path("runs/smoke/guideline2/runs/k3-shortcut.smoke.generated.seed0.json"))
    assert record.status == "done"
    assert record.recipe["epochs"] == 1
    assert record.data_fingerprint
    assert torch.__version__.startswith(record.versions["torch"])
    assert not list(Path("runs/guideline2").rglob("*.ckpt"))

    monkeypatch.setattr(scheduler, "train", lambda *_: pytest.fail("trained again"))
    assert smoke("--rows", "k3-shortcut") == 0
    second = capsys.readouterr().out
    assert "1 runs, 1 of them recorded already" in second
    assert first.splitlines()[-2:] == second.splitlines()[-2:]


def test_a_diverged_run_is_recorded_and_the_others_go_on(capsys, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", scale_of(1, lr=1e30))
    assert smoke("--rows", "k3-shortcut", "k3-plain") == 2
    output = capsys.readouterr()
    assert output.out.count("| failed |") == 2
    assert "k3-plain, seed 0: failed, the loss became" in output.err or "validation loss became" in output.err


def test_an_unreadable_record_is_measured_again(capsys):
    path = Path("runs/smoke/guideline2/runs/k3-shortcut.smoke.generated.seed0.json")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="not a readable record"):
        assert smoke("--rows", "k3-shortcut") == 0
    assert read_record(path).status == "done"


def test_a_record_of_another_recipe_is_not_taken_for_this_one(capsys, monkeypatch):
    assert smoke("--rows", "k3-shortcut") == 0
    monkeypatch.setitem(SCALES, "smoke", scale_of(2))
    assert smoke("--rows", "k3-shortcut") == 2
    assert "was measured with another recipe" in capsys.readouterr().err


def test_a_run_killed_before_its_record_is_not_lost(monkeypatch):
    run = Run(guideline2, guideline2.rows[0], scale_of(1), "generated", seed=5)
    record = train(run, CPU, tqdm(disable=True))
    assert (run.folder / "last.ckpt").exists()
    again = train(run, CPU, tqdm(disable=True))
    assert again.metrics == record.metrics
    assert "top1" in again.metrics


def test_a_fine_tuning_needs_its_checkpoint(capsys, tmp_path):
    command = ["table6", "--scale", "smoke", "--rows", "replknet31b-22k-224", "--accelerator", "cpu"]
    assert runner.main(command) == 2
    assert "--init replknet31b-22k-224=PATH" in capsys.readouterr().err
    options = SMOKE.options_for(table6.select(["replknet31b-22k-224"])[0])
    torch.save(timm.create_model("replknet_31b", num_classes=7, **options).state_dict(), tmp_path / "22k.pth")
    assert runner.main([*command, "--init", f"replknet31b-22k-224={tmp_path / '22k.pth'}"]) == 0
    assert runner.main([*command, "--seeds", "1", "--init", "replknet31b-22k-224=nowhere.pth"]) == 2


def test_rows_that_are_only_counted_have_nothing_to_train(capsys):
    assert runner.main(["table6", "--rows", "swin-b-224", "--dry-run"]) == 0
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize("devices", ["auto", "-1", "8", "0,", "0,1"])
def test_a_dry_run_takes_what_the_trainer_would(devices):
    assert smoke(f"--devices={devices}", "--strategy=ddp", "--dry-run") == 0


def test_a_dry_run_prints_every_run_and_does_nothing(capsys):
    assert smoke("--dry-run", "--seeds", "0", "1") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^guideline2 ", out, re.M)) == 8
    assert "kernel_size': 13" in out
    assert "steps   2 (2 an epoch)" in out
    assert not Path("runs").exists()


def test_the_list_names_every_ablation(capsys):
    assert runner.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("guideline2", "guideline3", "guideline5", "table5", "table6", "table11"))
    assert len(out.splitlines()) == len(all_ablations())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["guideline9"], "there is no ablation 'guideline9'; choose from guideline1, guideline1_network"),
        (["guideline2", "--rows", "k5"], "guideline2 has no row 'k5'; choose from k3-shortcut"),
        (["guideline2", "--seeds", "-1"], "seeds are whole numbers from 0"),
        (["guideline2", "--devices", "abc"], "the trainer does not take these flags"),
        (["guideline2", "--strategy", "nonesuch"], "the trainer does not take these flags"),
        (["guideline2", "--strategy", "ddp_spawn"], "use ddp or fsdp"),
        (["guideline2", "--results", "/proc"], "results cannot be written to /proc/guideline2"),
        (["guideline2", "--scale", "tiny"], "there is no scale 'tiny'; choose from smoke, small, paper"),
        (["guideline2", "--data", "cifar"], "'cifar'"),
        (["guideline2", "--data", "imagefolder:nowhere"], "no folder nowhere"),
        (["guideline2", "--data", "imagefolder:nowhere", "--dry-run"], "no folder nowhere"),
        (["guideline2", "--data", "scenes-masks", "--dry-run"], "scenes-masks is for segmentation"),
        (["guideline2", "--devices", "abc", "--dry-run"], "there are no 'abc' devices on 1 nodes"),
        (["guideline2", "--num-nodes", "0", "--dry-run"], "there are no '1' devices on 0 nodes"),
        (["guideline2", "--precision", "17"], "the trainer does not take these flags"),
        (["guideline2", "--precision", "17", "--dry-run"], "there is no precision '17'; choose from "),
        (["guideline2", "--strategy", "magic", "--dry-run"], "there is no strategy 'magic'; choose from auto, ddp, "),
        ([], "name an ablation"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_2(capsys, arguments, sentence):
    assert runner.main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_garments_that_are_nowhere_get_one_sentence_and_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with offline():
        assert runner.main(["guideline2", "--data", "scenes-garments", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "install Debian's package dataset-fashion-mnist, name a folder" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["guideline2", "--seeds", "one"], "argument --seeds: invalid int value: 'one'"),
        (["guideline2", "--colour"], "unrecognized arguments: --colour"),
        (["table6", "--init", "replknet31b-384"], "'replknet31b-384' names no checkpoint of a row: write KEY=PATH"),
    ],
)
def test_a_wrong_flag_gets_one_sentence_without_the_usage(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        runner.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ablations.run: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_all_parts_of_a_table_are_looked_at_before_the_first_is_trained(capsys, monkeypatch):
    monkeypatch.setattr(scheduler, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setitem(table5.scales, "smoke", replace(table5.scales["smoke"], data="imagefolder:nowhere"))
    assert runner.main(["guideline4", "--scale", "smoke", "--accelerator", "cpu"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err


def test_an_even_kernel_is_told_before_anything_is_trained(capsys, monkeypatch):
    even = Ablation(
        "even", "", "", "Table 0", mobilenetv2_100ep, guideline2.metrics, (Row("k4", "mobilenetv2_lk", kernel_size=4),)
    )
    monkeypatch.setattr(command, "get_ablation", lambda _: even)
    assert runner.main(["even", "--scale", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "'kernel_size': 4" in error
    assert "odd" in error


def weights(run):
    checkpoint = torch.load(run.folder / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["epoch"]


def test_an_interrupted_run_ends_with_the_weights_of_an_unbroken_one(monkeypatch):
    run = Run(guideline2, guideline2.rows[0], scale_of(3), "generated", seed=5)
    unbroken = train(run, CPU, tqdm(disable=True))
    expected, _ = weights(run)

    monkeypatch.setattr("ablations.runner.runs.WORK", Path("again"))
    with pytest.raises(UnpluggedError):
        train(run, CPU, UnpluggedBar(total=3))
    assert weights(run)[1] == 0
    resumed = train(run, CPU, tqdm(disable=True))
    assert resumed.metrics == unbroken.metrics
    actual, epoch = weights(run)
    assert epoch == 2
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


KILLED = """
import sys
from dataclasses import replace
from tqdm import tqdm
from ablations.scales import SMOKE
from ablations.tables.guideline2 import guideline2
from ablations.tables.table6 import table6
from ablations.runner.machine import Machine
from ablations.runner.runs import Run
from ablations.runner.train import train
recipe = {"mobilenetv2": {**SMOKE.recipe["mobilenetv2"], "epochs": int(sys.argv[1])}}
run = Run(guideline2, guideline2.rows[0], replace(SMOKE, recipe=recipe), "generated", seed=5)
train(run, Machine(accelerator="cpu"), tqdm(disable=True))
"""


def test_kill_minus_9_costs_at_most_an_epoch():
    epochs = 20
    run = Run(guideline2, guideline2.rows[0], scale_of(epochs), "generated", seed=5)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(epochs)], cwd=Path.cwd(), env=_environment())
    deadline = time.monotonic() + 600
    while not (run.folder / "last.ckpt").exists():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, killed_after = weights(run)
    assert killed_after < epochs - 1
    resumed = train(run, CPU, tqdm(disable=True))
    actual, _ = weights(run)

    (run.folder / "last.ckpt").unlink()
    unbroken = train(run, CPU, tqdm(disable=True))
    expected, _ = weights(run)
    assert resumed.metrics == unbroken.metrics
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}
