"""One loader for what a user types: timm's names, files of weights, checkpoints of Lightning and of train.py."""

from argparse import Namespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.utils import CheckpointSaver, ModelEmaV3

from replk_lightning.data.augment import Augmentation
from replk_lightning.hub import save_pretrained
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.nets import has_weights, open_net
from replk_lightning.tasks.base import PIXELS
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.segment import SegmentTask

OWN = {"width": 0.1}


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def trained_by_timm(folder, name, ema=False, **arguments):
    """A checkpoint as timm's train.py writes it, and the net in it."""
    given = {"num_classes": 5, "in_chans": None, "gp": None, "input_size": None, "img_size": None, "model_kwargs": {}}
    given |= {"mean": None, "std": None, "interpolation": "", "crop_pct": None, "lr": 0.1, **arguments}
    shape = {"num_classes": given["num_classes"], **given["model_kwargs"]}
    if given["img_size"] and "vit" in name:
        shape["img_size"] = given["img_size"]
    net = timm.create_model(name, **shape)
    average = ModelEmaV3(timm.create_model(name, **shape)) if ema else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    arguments = Namespace(model=name, **given)
    saver = CheckpointSaver(net, optimizer, args=arguments, model_ema=average, checkpoint_dir=str(folder))
    saver.save_checkpoint(0, metric=1.0)
    return folder / "checkpoint-0.pth.tar", average.module if ema else net, vars(arguments)


@pytest.mark.parametrize(
    ("name", "ema", "arguments"),
    [
        ("test_resnet", False, {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "img_size": 96, "crop_pct": 1.0}),
        ("test_vit", True, {"img_size": 64, "interpolation": "bilinear"}),
        ("mobilenetv2_lk", False, {"model_kwargs": {"width": 0.1, "kernel_size": 5}}),
    ],
)
def test_a_checkpoint_of_timms_train_builds_what_was_trained(tmp_path, name, ema, arguments):
    path, trained, given = trained_by_timm(tmp_path, name, ema, **arguments)
    for spec in (path, f"{name}@{path}"):
        net = open_net(str(spec))
        assert same(net.net, trained)
        assert not net.random
        assert not net.net.training
        picture = Image.linear_gradient("L").convert("RGB").resize((150, 120))
        expected = create_transform(**resolve_data_config(given, model=trained), is_training=False)(picture)
        assert torch.equal(net.preprocessing.transform()(picture), expected)
    assert open_net(str(path)).name == "checkpoint-0.pth.tar"


def test_weights_of_a_file_are_those_of_a_name(tmp_path):
    trained = timm.create_model("test_resnet")
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    net = open_net(f"test_resnet@{tmp_path / 'x.pth'}")
    assert same(net.net, trained)
    assert (net.name, net.weights, net.trained) == ("test_resnet", f"of {tmp_path / 'x.pth'}", None)


def test_random_weights_are_known_as_such_and_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    one, same_seed, other = (open_net("test_resnet", pretrained=False, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.random
    assert one.weights == "random (seed 3)"
    assert same(one.net, same_seed.net)
    assert not same(one.net, other.net)
    assert has_weights("test_resnet")
    assert not has_weights("mobilenetv2_lk")
    assert open_net("mobilenetv2_lk").random  # there are none


def test_a_folder_of_timms_is_opened_by_its_own_prefix(tmp_path):
    trained = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(trained, tmp_path / "net", model_config={"num_classes": 7})
    net = open_net(f"local-dir:{tmp_path / 'net'}")
    assert same(net.net, trained)
    assert not net.random
    assert open_net(f"local-dir:{tmp_path / 'net'}", pretrained=False).random
    with pytest.raises(ModelError, match=r"is a folder: write local-dir:/"):
        open_net(str(tmp_path / "net"))
    with pytest.raises(ModelError, match=r"local-dir:/nowhere cannot be read"):
        open_net("local-dir:/nowhere")


def test_tasks_of_checkpoints_say_how_pictures_are_prepared(tmp_path):
    own = {"model_options": OWN}
    tasks = {
        "classify": ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 3, recipe_overrides={"resolution": 64}, **own),
        "segment": SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", 3, recipe_overrides={
            "channels": 16, "auxiliary_channels": 8, "crop": (32, 64)}, **own),
        "detect": DetectTask("mobilenetv2_lk", "fcos_2x", 3, recipe_overrides={
            "channels": 16, "drop_path": 0.0, "test_size": 64, "max_size": 96}, **own),
    }  # fmt: skip
    found = {}
    for name, task in tasks.items():
        pixels = {PIXELS: {"mean": [0.2] * 3, "std": [0.4] * 3}} if name == "detect" else {}
        content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), **pixels}
        torch.save(content, tmp_path / f"{name}.ckpt")
        net = open_net(str(tmp_path / f"{name}.ckpt"))
        assert same(net.trained.task, task)
        assert net.net is net.trained.task.model
        found[name] = net.preprocessing
    assert found["classify"] == Augmentation().preprocessing(64)
    assert (found["segment"].size, found["segment"].crop_mode) == ((32, 64), "squash")
    assert (found["detect"].size, found["detect"].mean) == ((64, 96), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        ("nonesuch", ModelError, "no model 'nonesuch': it is neither a file nor one of timm's models"),
        ("resnet18.nonesuch", ModelError, "no model 'resnet18.nonesuch': Invalid pretrained tag"),
        ("nobody/resnet18", ModelError, "no model 'nobody/resnet18'"),
        ("nowhere.pth.tar", CheckpointError, "there is no checkpoint nowhere.pth.tar"),
        ("resnet18@nowhere.pth", CheckpointError, "there is no file nowhere.pth with weights for resnet18"),
        ("nonesuch@{file}", ModelError, "no model 'nonesuch'"),
        ("{file}", CheckpointError, "weights alone need their model's name, as in resnet50@PATH"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, spec, kind, sentence):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(kind, match=r"^[^\n]*$") as caught:
        open_net(spec.format(file=tmp_path / "w.pth"))
    assert sentence in str(caught.value)


def test_a_folder_of_this_packages_keeps_its_kernels(tmp_path):
    trained = timm.create_model("mobilenetv2_lk", width=0.1, kernel_size=5, num_classes=3)
    save_pretrained(trained, tmp_path / "net")
    net = open_net(f"local-dir:{tmp_path / 'net'}")
    assert same(net.net, trained)
    assert not net.random


def test_arguments_of_a_checkpoint_that_timm_does_not_write_are_told(tmp_path):
    path, _, _ = trained_by_timm(tmp_path, "mobilenetv2_lk", model_kwargs={"width": 0.1}, input_size=64)
    with pytest.raises(ModelError, match=r"input_size is 64: timm's train\.py writes three numbers"):
        open_net(str(path))
    content = torch.load(path, weights_only=False)
    content["args"].model = None
    torch.save(content, path)
    with pytest.raises((ModelError, CheckpointError), match="weights alone need their model's name"):
        open_net(str(path))
