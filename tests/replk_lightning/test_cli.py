import sys

import pytest
import torch

from replk_lightning.__main__ import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Lightning calls jsonargparse the old way
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*tensorboardX"),
]
TINY = ["--model.model=mobilenetv2_lk", '--model.model_options={"width": 0.1}', "--model.recipe=mobilenetv2_100ep"]
DATA = ["--data.name=generated", "--data.batch_size=16", '--data.options={"image_size": 32}']
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["replk_lightning", *arguments])
        return main()

    monkeypatch.chdir(tmp_path)
    return run


def test_fit_takes_epochs_and_classes_from_recipe_and_data(tmp_path, command):
    epochs = '--model.recipe_overrides={"epochs": 2, "ema": 0.9}'
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, epochs) == 0
    (last,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["epoch"] == 1
    assert checkpoint["hyper_parameters"]["num_classes"] == 4
    assert any("EMA" in name for name in checkpoint["callbacks"])
    assert any("ExactResume" in name for name in checkpoint["callbacks"])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("--model.model=nonesuch", "Unknown model"),
        ("--model.recipe=nonesuch", "there is no recipe 'nonesuch'; choose one of mobilenetv2_100ep"),
        ('--model.model_options={"kernel_size": 4}', "odd"),
        ("--data.name=nonesuch", "No data set is called 'nonesuch'"),
    ],
)
def test_a_wrong_name_gets_one_sentence_and_2(capsys, command, wrong, sentence):
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, wrong) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_pseudo_label_is_a_command_of_its_own(capsys, command):
    assert command("pseudo-label", "--images", "nowhere", "--out", "labels") == 2
    assert capsys.readouterr().err.startswith("pseudo-label: nothing to write")
