"""`fit` with a checkpoint: a flag that is typed holds, or is refused; the rate that is printed trains."""

import shutil
import sys

import pytest
import torch

from replk_lightning.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Lightning calls jsonargparse the old way
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*tensorboardX"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint"),
]
NET = ["--model.model=mobilenetv2_lk", "--model.recipe=mobilenetv2_100ep"]
WIDTH = '--model.model_options={"width": 0.1}'
DATA = ["--data.name=generated", '--data.options={"image_size": 32}']
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
RESUME = ["fit", *NET, *DATA, *QUIET, "--ckpt_path=last.ckpt"]


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replk_lightning", *arguments])
        return main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs of four steps, at a batch of 16."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = ['--model.recipe_overrides={"epochs": 2, "warmup_epochs": 0}', "--data.batch_size=16"]
    root = f"--trainer.default_root_dir={folder}"
    assert run("fit", "--seed_everything=1", *NET, WIDTH, *DATA, *QUIET, *overrides, root) == 0
    return next(folder.rglob("last.ckpt"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, "last.ckpt")


def resumed(tmp_path):
    (last,) = (tmp_path / "runs").rglob("last.ckpt")
    return torch.load(last, weights_only=True)


def test_what_is_not_typed_is_the_checkpoints(tmp_path, capsys):
    assert run(*RESUME, "--data.batch_size=16", "--trainer.max_epochs=3") == 0
    options = resumed(tmp_path)["hyper_parameters"]
    assert options["model_options"] == {"width": 0.1}
    assert options["recipe_overrides"] == {"epochs": 2, "warmup_epochs": 0}
    assert "from now on" not in capsys.readouterr().out


def test_typed_epochs_are_trained_and_named(tmp_path, capsys):
    assert run(*RESUME, "--data.batch_size=16", '--model.recipe_overrides={"epochs": 3, "warmup_epochs": 0}') == 0
    checkpoint = resumed(tmp_path)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 12)
    assert checkpoint["hyper_parameters"]["recipe_overrides"]["epochs"] == 3
    out = capsys.readouterr().out
    assert "--model.recipe_overrides is {'epochs': 3, 'warmup_epochs': 0} from now on" in out
    assert "trained with {'epochs': 2, 'warmup_epochs': 0}" in out


def test_the_rate_that_is_printed_trains_and_the_schedule_goes_on_where_it_was(tmp_path, capsys):
    overrides = '--model.recipe_overrides={"epochs": 4, "warmup_epochs": 0, "weight_decay": 0.5, "momentum": 0.8}'
    assert run(*RESUME, "--data.batch_size=8", overrides, "--trainer.max_epochs=3") == 0
    assert "0.1 × 8/256 = 0.003125" in capsys.readouterr().out
    checkpoint = resumed(tmp_path)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == pytest.approx(0.003125)
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.8)
    (schedule,) = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == 3 * 8  # two epochs of four steps count as two of eight
    assert group["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (['--model.recipe_overrides={"epochs": 1}'], "has 2 epochs behind it, more than the 1 to train for"),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=4"], "has 8 steps behind it, more than the 4"),
        (['--model.recipe_overrides={"epochs": 3, "optimizer": "adamw"}'], "optimizer sgd, now adamw"),
        (['--model.recipe_overrides={"epochs": 3, "layer_decay": 0.5}'], "layer_decay None, now 0.5"),
        (['--model.model_options={"width": 0.2}'], "model_options {'width': 0.1}, now {'width': 0.2}"),
        (["--model.model=resnet18"], "last.ckpt holds a mobilenetv2_lk, no resnet18"),
        (["--data.name=mnist5k"], "num_classes 4, now 10"),
        (["--model.init=other.pth"], "--model.init starts a training and --ckpt_path goes on with one"),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_one_sentence_and_2(capsys, flags, sentence):
    assert run(*RESUME, *flags) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_seed_that_makes_no_difference_is_named(capsys):
    assert run(*RESUME[:1], "--seed_everything=3", *RESUME[1:], "--data.batch_size=16") == 0
    assert "whatever --seed_everything is" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["best", "last"])
def test_words_for_a_running_training_are_refused_elsewhere(capsys, path):
    assert run("validate", *NET, *DATA, *QUIET, f"--ckpt_path={path}") == 2
    assert "name the file" in capsys.readouterr().err


def test_weights_alone_start_a_training_and_do_not_go_on_with_one(capsys):
    content = torch.load("last.ckpt", weights_only=True)
    del content["optimizer_states"], content["lr_schedulers"]
    torch.save(content, "last.ckpt")
    assert run(*RESUME) == 2
    assert "holds weights only" in capsys.readouterr().err
    assert run("fit", *NET, WIDTH, *DATA, *QUIET, "--model.init=last.ckpt", "--trainer.max_epochs=1") == 0


def test_a_start_with_other_classes_says_which_flag_gives_a_new_head(capsys):
    content = torch.load("last.ckpt", weights_only=True)
    content["state_dict"] = {k: v[:3] if ".head." in k else v for k, v in content["state_dict"].items()}
    torch.save(content, "three.ckpt")
    start = ["fit", *NET, WIDTH, *DATA, *QUIET, "--model.init=three.ckpt", "--trainer.max_epochs=1"]
    assert run(*start) == 2
    advice = """--model.recipe_overrides='{"new_head": true}'"""
    assert advice in capsys.readouterr().err
    assert run(*start, advice.replace("'", "")) == 0
