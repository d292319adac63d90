import math
from types import SimpleNamespace

import lightning as L
import pytest
import timm
import torch

import replk_lightning
from replk_lightning.data import DataError, create_data
from replk_lightning.recipes import RecipeError, get_recipe
from replk_lightning.tasks.base import NonFiniteLossError
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.optim import make_optimizer, warmup_cosine

TINY = {"width": 0.1, "stem_stride": 1, "output_stride": 8}
SHORT = {"epochs": 1, "batch_size": 16, "gpus": 1, "warmup_epochs": 0, "resolution": 32}


def tiny_task(**overrides):
    return ClassifyTask(
        "mobilenetv2_lk", "mobilenetv2_100ep", 4, model_options=TINY, recipe_overrides={**SHORT, **overrides}
    )


def trainer(folder, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder, **options
    )  # fmt: skip


@pytest.fixture
def data():
    return create_data("generated", image_size=32, batch_size=16)


def test_one_epoch_logs_accuracy_in_percent(tmp_path, data):
    run = trainer(tmp_path, max_epochs=1)
    run.fit(tiny_task(), data)
    assert 0 <= run.callback_metrics["val_top1"] <= 100
    assert math.isfinite(run.callback_metrics["val_loss"])


def test_tests_are_logged_as_tests(tmp_path, data):
    task = tiny_task()
    logged = trainer(tmp_path).test(task, data, verbose=False)[0]
    assert logged.keys() == {"test_loss", "test_top1"}
    assert logged["test_top1"] == trainer(tmp_path).validate(task, data, verbose=False)[0]["val_top1"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data):
    task = tiny_task(lr=1e30)
    with pytest.raises(NonFiniteLossError, match="loss became NaN or infinite"):
        trainer(tmp_path, max_epochs=2).fit(task, data)


def test_a_loss_that_nobody_looked_at_stops_the_run_before_validation(tmp_path, data):
    task = tiny_task()
    task._finite = torch.zeros((), dtype=torch.bool)
    with pytest.raises(NonFiniteLossError, match="the loss became NaN"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=0).validate(task, data)


def test_recipes_of_other_tasks_are_refused():
    with pytest.raises(RecipeError, match="fcos_2x is no recipe of ClassifyTask; choose one of mobilenetv2_100ep"):
        ClassifyTask(recipe="fcos_2x")


def test_the_learning_rate_scales_with_the_batch_and_says_so(tmp_path, data, capsys):
    task = tiny_task(batch_size=32, lr=0.1)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, data)
    assert task.optimizers().optimizer.defaults["lr"] == pytest.approx(0.05)
    assert "0.1 × 16/32 = 0.05" in capsys.readouterr().out


def test_warmup_and_cosine():
    assert warmup_cosine(0, 100, 10, 0.0) == pytest.approx(0.1)
    assert warmup_cosine(9, 100, 10, 0.0) == 1.0
    assert warmup_cosine(55, 100, 10, 0.0) == pytest.approx(0.5)
    assert warmup_cosine(100, 100, 10, 0.01) == pytest.approx(0.01)
    assert warmup_cosine(0, 100, 0, 0.0) == 1.0


def test_mixing_gives_soft_smoothed_labels():
    task = ClassifyTask("mobilenetv2_lk", "replknet_120ep", 4, model_options=TINY, recipe_overrides={"drop_path": 0.0})
    _, labels = task.mixup(torch.rand(8, 3, 32, 32), torch.arange(8) % 4)
    assert labels.shape == (8, 4)
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert labels.min() == pytest.approx(0.1 / 4)


def test_weight_decay_spares_norms_and_biases_except_in_the_mobilenet_recipe():
    model = timm.create_model("mobilenetv2_lk", **TINY)
    spared = make_optimizer(model, get_recipe("replknet_120ep"), 1e-3)
    assert isinstance(spared, torch.optim.AdamW)
    for group in spared.param_groups:
        assert (group["weight_decay"] == 0) == all(p.ndim <= 1 for p in group["params"])
    everything = make_optimizer(model, get_recipe("mobilenetv2_100ep"), 0.1)
    assert [g["weight_decay"] for g in everything.param_groups] == [4e-5]
    assert not everything.defaults["nesterov"]


def test_stage_wise_decay_slows_the_stages_towards_the_input():
    net = timm.create_model("replknet_31b", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    groups = make_optimizer(net, get_recipe("xl_finetune_320"), 1e-4).param_groups
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert len(rate) == len(list(net.parameters()))
    parameters = dict(net.named_parameters())
    head = rate[id(parameters["head.weight"])]
    stages = [rate[id(parameters[f"stages.{i}.blocks.0.pw1.conv.weight"])] for i in range(4)]
    assert head == pytest.approx(1e-4)
    assert stages == sorted(stages)
    assert stages[0] / stages[1] == pytest.approx(0.4)
    assert rate[id(parameters["stem.0.conv.weight"])] <= stages[0]


def test_layer_wise_decay_groups_blocks_within_a_stage():
    net = timm.create_model("replknet_31b", dims=(8, 8, 8, 8))
    groups = make_optimizer(net, get_recipe("replknet_finetune_384"), 1e-4).param_groups
    # the stem, nine groups in the third stage, one in each other stage, the head
    assert len({round(g["lr"] * 1e12) for g in groups}) == 1 + 3 + 9 + 1


def test_checkpoints_load_with_weights_only(tmp_path, data):
    task = tiny_task()
    run = trainer(tmp_path, max_epochs=1)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    again = ClassifyTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(task.eval()(images), again.eval()(images))
    assert replk_lightning.__version__


def test_a_stream_of_unknown_length_is_told():
    task = tiny_task()
    task._trainer = SimpleNamespace(estimated_stepping_batches=math.inf, limit_train_batches=1.0)
    with pytest.raises(DataError, match="train_size=N"):
        task._steps()
