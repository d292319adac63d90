import importlib
import json
import re
import sys

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from PIL import Image

from replk_lightning.cli import main
from replk_lightning.predict.command import decoded
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.factory import load_task
from replk_lightning.trainer import loggers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Lightning calls jsonargparse the old way
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*tensorboardX"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # of ModelCheckpoint, whose best is fit's
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
        ("--data.name=scenes-masks", "scenes-masks is for segmentation, and the recipe mobilenetv2_100ep is for class"),
        ("--model.init=nonesuch.pth", "nonesuch.pth"),
        ("--ckpt_path=nonesuch.ckpt", "nonesuch.ckpt"),
        ("--trainer.devices=0", "the trainer does not take these flags: "),
        ("--trainer.val_check_interval=100", "less than or equal to the number of the training batches"),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches is to be a number above 0"),
        ("--ckpt_path=/dev/null", "there is no checkpoint /dev/null"),
        ("--config=junk", "the file of --config is no text"),
        ("--trainer.max_epochs=-1", "how many steps the training takes is unknown"),
        ("--trainer.precision=transformer-engine", "transformer_engine"),
        ("--data.batch_size=0", "the data's batch_size cannot be 0"),
        ('--data.options={"image_size": "x"}', "the data's image_size cannot be 'x'"),
        ('--data.options={"num_workers": -1}', "the data's num_workers cannot be -1"),
        ('--model.recipe_overrides={"epochs": "three"}', "a recipe's epochs cannot be 'three'"),
        (
            '--model.recipe_overrides={"optimizer": "adam"}',
            "optimizer cannot be 'adam': give it sgd or adamw",
        ),
        ("--ckpt_path=junk", "junk is not a checkpoint of this package's tasks"),
        ("--model.init=junk", "junk cannot be read as a checkpoint"),
    ],
)
def test_a_wrong_name_gets_one_sentence_and_2(tmp_path, capsys, command, wrong, sentence):
    (tmp_path / "junk").write_bytes(b"<html>\xff")
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, wrong) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit", *TINY, "--trainer.precision=7"], 'Parser key "trainer.precision" does not take 7.'),
        (["fit", "--nonesuch=1"], "unrecognized arguments: --nonesuch=1"),
        (["fit", "--model.model=resnet18"], 'Parser key "model.recipe"'),
        (["nonesuch"], "invalid choice: 'nonesuch'"),
    ],
)
def test_a_wrong_flag_gets_one_sentence_and_2(capsys, command, words, sentence):
    with pytest.raises(SystemExit, match="2"):
        command(*words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replk_lightning: ")
    assert sentence in line


SMALL = {"gpus": 1, "batch_size": 8, "drop_path": 0.0, "channels": 16, "resolution": 48}
SEGMENT = {**SMALL, "auxiliary_channels": 8, "crop": (48, 48), "resize": (48, 48), "iterations": 3}
DETECT = {**SMALL, "head_convs": 1, "train_sizes": (48,), "test_size": 48, "max_size": 48, "epochs": 1}


@pytest.mark.parametrize(
    ("recipe", "overrides", "data", "steps", "found", "metrics"),
    [
        ("upernet_ade20k_80k", SEGMENT, "scenes-masks-smoke", 3, "segments", ("val_miou", "test_miou")),
        ("fcos_2x", DETECT, "scenes-objects-smoke", 2, "objects", ("val_box_ap", "test_box_ap")),
    ],
)
def test_the_recipe_says_the_task_and_how_long(
    tmp_path, capsys, command, recipe, overrides, data, steps, found, metrics
):
    model = ["--model.model=replknet_3", '--model.model_options={"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}']
    under = [f"--model.recipe={recipe}", f"--model.recipe_overrides={json.dumps(overrides)}"]
    options = '--data.options={"image_size": 48}'
    assert command("fit", "--seed_everything=1", *model, *under, f"--data.name={data}", options, *QUIET) == 0
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == steps
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (60, 50), "red").save(tmp_path / "pictures" / "x.png")
    assert command("predict", f"--ckpt={last}", "--images=pictures", "--out=out", "--device=cpu") == 0
    (picture,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert picture["file"] == "x.png"
    assert found in picture
    assert decoded(tmp_path / "out" / "x.png.png").size == (60, 50)
    capsys.readouterr()
    for verb, metric in zip(("validate", "test"), metrics, strict=True):
        assert command(verb, *model, *under, f"--data.name={data}", options, *QUIET, f"--ckpt_path={last}") == 0
        assert f" {metric} " in capsys.readouterr().out
    trained = load_task(last)
    assert (trained.mean, trained.as_recipe) == ((0.35,) * 3, False)


def test_data_are_the_recipes_own_unless_named(tmp_path, capsys, command):
    assert command("fit", "--model.model=resnet18", "--model.recipe=fcos_2x", *QUIET) == 2
    assert "annotations_trainval2017.zip" in capsys.readouterr().err


@pytest.mark.parametrize("logger", ["WandbLogger", "MLFlowLogger", "CometLogger", "TensorBoardLogger"])
def test_a_logger_that_is_not_installed_is_one_sentence_and_2(capsys, command, monkeypatch, logger):
    for package in ("wandb", "mlflow", "comet", "tensorboard"):  # whether they are installed here or not
        module = importlib.import_module(f"lightning.pytorch.loggers.{package}")
        for name in [name for name in vars(module) if name.endswith("_AVAILABLE")]:
            monkeypatch.setattr(module, name, RequirementCache(f"{package}-that-is-nowhere"))
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, f"--trainer.logger={logger}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("replk_lightning: these flags are refused: ")
    assert "pip install" in error


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_by_its_short_name_says_what_to_install(tmp_path, capsys, command, monkeypatch, name):
    monkeypatch.setitem(loggers.KINDS, name, not_installed)
    assert command("fit", *TINY, *DATA, *QUIET, f"--trainer.logger=[csv,{name}]") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"replk_lightning: the logger {name} needs a package: pip install {name}."
    assert not list(tmp_path.rglob("*.csv"))


def not_installed(**_):
    raise ModuleNotFoundError("wandb or another")


ONE_EPOCH = '--model.recipe_overrides={"epochs": 1}'


def test_a_logger_writes_where_everything_goes(tmp_path, command):
    where = "--trainer.default_root_dir=here"
    assert (
        command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, ONE_EPOCH, "--trainer.logger=CSVLogger", where) == 0
    )
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("metrics.csv")] == ["here"]


def test_loggers_by_short_names_write_where_everything_goes_also_out_of_a_file(tmp_path, command):
    (tmp_path / "own.yaml").write_text("trainer: {logger: [csv, CSVLogger]}")
    assert command("fit", "--config=own.yaml", "--seed_everything=1", *TINY, *DATA, *QUIET, ONE_EPOCH) == 0
    paths = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("metrics.csv")}
    assert paths == {f"runs/fit/lightning_logs/version_{number}/metrics.csv" for number in (0, 1)}
    assert "logger:\n  - csv\n" in (tmp_path / "runs/fit/lightning_logs/version_0/config.yaml").read_text()


@pytest.mark.filterwarnings("ignore:.*barebones=True")
@pytest.mark.parametrize("flag", ["barebones=true", "enable_checkpointing=false", "fast_dev_run=true", "logger=false"])
def test_runs_without_checkpoints_or_logs(tmp_path, command, flag):
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET[:1], ONE_EPOCH, f"--trainer.{flag}") == 0
    assert bool(list(tmp_path.rglob("last.ckpt"))) == (flag == "logger=false")


def test_a_callback_that_is_typed_replaces_the_commands_own(tmp_path, command):
    kept = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=mine"]
    ema = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    overrides = '--model.recipe_overrides={"epochs": 1, "ema": 0.9}'
    assert command("fit", "--seed_everything=1", *TINY, *DATA, *QUIET, overrides, *kept, *ema) == 0
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["mine.ckpt"]


def test_pseudo_label_is_a_command_of_its_own(capsys, command):
    assert command("pseudo-label", "--images", "nowhere", "--out", "labels") == 2
    assert capsys.readouterr().err.startswith("pseudo-label: nothing to write")


def test_what_is_only_looked_at_takes_the_weights_of_init_or_is_said_to_be_untrained(tmp_path, command, capsys):
    look = ["validate", "--seed_everything=1", *TINY, *DATA, *QUIET]
    assert command(*look) == 0
    assert "no --ckpt_path and no --model.init: the net is looked at untrained" in capsys.readouterr().out
    net = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 4, model_options={"width": 0.1}).model
    torch.nn.init.zeros_(net.head.weight)
    net.head.bias.data = torch.tensor([0.0, 50.0, 0.0, 0.0])  # one class of four, far from all others
    torch.save(net.state_dict(), "weights.pth")
    assert command(*look, "--model.init=weights.pth") == 0
    loss = re.search(r"val_loss\D+([\d.]+)", capsys.readouterr().out)
    assert float(loss[1]) > 20
    assert command(*look, "--model.init=weights.pth", '--model.recipe_overrides={"new_head": true}') == 2
    assert "--model.init holds no weights for the head: name a checkpoint with --ckpt_path" in capsys.readouterr().err
