"""erf, shape-bias and complexity as commands: over nets no one here wrote, and every wrong argument."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from replk_lightning.cli import COMMANDS
from replk_lightning.commands import complexity, erf, shape_bias
from replk_lightning.data.decoding import decode_rgb
from replk_lightning.measure.complexity import complexity as count
from replk_lightning.measure.complexity import detector_complexity
from replk_lightning.measure.erf import area_ratio, contribution
from replk_lightning.measure.shape_bias import measure_stimuli
from replk_lightning.nets import open_net
from replk_lightning.tasks.base import PIXELS
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.segment import SegmentTask

OWN = {"model_options": {"width": 0.1}}
QUICK = ["--size", "64", "--device", "cpu"]


def saved(task, path, **more):
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), **more}, path)
    return str(path)


def classifier(path, in_chans=3, **more):
    own = {"recipe_overrides": {"resolution": 32}, **OWN}
    return saved(ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 4, in_chans, **own), path, **more)


def segmenter(path):
    overrides = {"channels": 16, "auxiliary_channels": 8, "crop": (64, 64)}
    return saved(
        SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", 4, recipe_overrides=overrides, **OWN), path
    )


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv2_lk"])
def test_the_field_of_any_net_is_that_of_the_measure(tmp_path, pictures, capsys, name):
    if name == "mobilenetv2_lk":
        torch.save(timm.create_model(name).state_dict(), tmp_path / "net.pth")
        name += f"@{tmp_path / 'net.pth'}"
    out = tmp_path / "out"
    arguments = ["--model", name, "--images", str(pictures), "--out", str(out), "--seed", "5", *QUICK]
    random = [] if "@" in name else ["--random"]
    (pictures / "d.png").write_text("<html>")
    assert erf.main([*arguments, "--count", "9", *random]) == 0
    said = json.loads((out / "erf.json").read_text())
    assert said["pictures"] == ["a.png", "b.png", "c.png"]
    assert [each["file"] for each in said["unreadable"]] == ["d.png"]
    assert decode_rgb(str(out / "erf.png")).width > 100
    net = open_net(name, pretrained=not random, seed=5)
    mean, std = (torch.tensor(values)[:, None, None] for values in (net.preprocessing.mean, net.preprocessing.std))
    assert said["preprocessing"]["interpolation"] == net.preprocessing.interpolation
    kind = Image.Resampling[net.preprocessing.interpolation.upper()]
    squeezed = [decode_rgb(str(pictures / each)).resize((64, 64), kind) for each in said["pictures"]]
    images = [(torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 - mean) / std for each in squeezed]
    assert list(said["r"].values()) == area_ratio(contribution(net.net, images), (0.2, 0.3, 0.5, 0.99))
    printed, warned = capsys.readouterr()
    assert "64×64 pixels" in printed
    assert ("random weights, not of a trained net" in warned) == bool(random)


def test_the_field_of_a_segmenter_is_its_backbones_and_grey_nets_see_grey(tmp_path, pictures):
    grey = classifier(tmp_path / "x.ckpt", in_chans=1, **{PIXELS: {"mean": [0.5], "std": [0.5]}})
    for number, model in enumerate([segmenter(tmp_path / "s.ckpt"), grey]):
        out = tmp_path / str(number)
        assert erf.main(["--model", model, "--images", str(pictures), "--out", str(out), *QUICK]) == 0
        assert 0 < json.loads((out / "erf.json").read_text())["r"]["0.2"] < 1


def test_shape_bias_is_that_of_the_measure(tmp_path, capsys):
    for name, grey in (("cat1-elephant2", 250), ("elephant1-cat1", 3), ("dog1-bear1", 100)):
        Image.new("L", (40, 40), grey).save(tmp_path / f"{name}.png")
    assert shape_bias.main(["--model", "test_resnet", "--stimuli", str(tmp_path), "--random", "--device", "cpu"]) == 0
    printed, warned = capsys.readouterr()
    net = open_net("test_resnet", pretrained=False)
    bias = measure_stimuli(net.net, tmp_path, net.preprocessing)
    assert f"3 stimuli found: {100 * bias.either:.1f} % of the decisions" in printed
    assert "160×160 pixels, bilinear, crop 0.95 (center)" in printed
    assert "random weights" in warned


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", None), ("vit_tiny_patch16_224", None), ("repvgg_a0", 64), ("mobilenetv2_lk", 96)]
)
def test_counts_are_those_of_the_measure_and_need_no_weights(capsys, name, size):
    assert complexity.main(["--model", name, *([] if size is None else ["--size", str(size)])]) == 0
    lines = capsys.readouterr().out.splitlines()
    side = (3, size or 224, size or 224)
    for line, form in zip(lines[2:], ({}, {"merged": True}, {"merged": True, "folded": True}), strict=True):
        assert [int(n.replace(",", "")) for n in line.split()[-2:]] == list(count(name, side, **form))


def test_counts_of_checkpoints_are_those_of_their_nets(tmp_path, capsys):
    grey, segments = classifier(tmp_path / "grey.ckpt", in_chans=1), segmenter(tmp_path / "s.ckpt")
    assert complexity.main(["--model", grey]) == 0
    assert "one picture of 1×32×32" in capsys.readouterr().out
    assert complexity.main(["--model", segments]) == 0
    trained = capsys.readouterr().out.splitlines()[2]
    model = open_net(segments).net
    auxiliary = sum(p.numel() for p in model.auxiliary_head.parameters())
    assert int(trained.split()[-2].replace(",", "")) == sum(p.numel() for p in model.parameters()) - auxiliary
    own = {"recipe_overrides": {"channels": 16, "drop_path": 0.0, "head_convs": 1, "test_size": 64, "max_size": 96}}
    detector = DetectTask("mobilenetv2_lk", "fcos_2x", 3, **own, **OWN)
    assert complexity.main(["--model", saved(detector, tmp_path / "d.ckpt")]) == 0
    trained = capsys.readouterr().out.splitlines()[2]
    counts = detector_complexity("mobilenetv2_lk", replace(detector.recipe, num_classes=3), size=(64, 96), width=0.1)
    assert [int(n.replace(",", "")) for n in trained.split()[-2:]] == list(counts)


RANDOM = ["--model", "test_resnet", "--random"]


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        (erf, [*RANDOM, "--images", "nowhere"], "there is no folder nowhere"),
        (erf, [*RANDOM, "--images", "empty"], "empty holds no image"),
        (erf, [*RANDOM, "--images", "broken", *QUICK], "none of the 1 pictures in broken can be read"),
        (erf, [*RANDOM, "--images", "pictures", "--out", "pictures/x"], "name another --out"),
        (erf, [*RANDOM, "--images", "pictures", "--out", "/proc/x"], "/proc/x cannot be written"),
        (erf, [*RANDOM, "--images", "pictures", "--device", "nonesuch"], "the device 'nonesuch' cannot be used"),
        (erf, [*RANDOM, "--images", "pictures", "--size", "1", "2", "3"], "--size takes a height and a width"),
        (erf, [*RANDOM, "--images", "pictures", "--size", "0"], "argument --size: 0 is not a whole number above 0"),
        (
            erf,
            ["--model", "vit_tiny_patch16_224", "--random", "--images", "pictures", *QUICK],
            "give its own size, --size 224 224",
        ),
        (erf, ["--model", "two.ckpt", "--images", "pictures", *QUICK], "sees 2 channels"),
        (erf, ["--model", "nonesuch", "--images", "pictures", *QUICK], "no model 'nonesuch'"),
        (erf, ["--model", "four.ckpt", "--random", "--images", "pictures", *QUICK], "four.ckpt brings its weights"),
        (shape_bias, [*RANDOM, "--stimuli", "nowhere"], "there is no folder nowhere"),
        (shape_bias, [*RANDOM, "--stimuli", "pictures"], "pictures holds no stimulus"),
        (shape_bias, ["--model", "four.ckpt", "--stimuli", "stimuli"], "four.ckpt has 4 classes"),
        (shape_bias, ["--model", "segments.ckpt", "--stimuli", "stimuli"], "is no classifier of one task"),
        (complexity, ["--model", "nonesuch"], "no model 'nonesuch'"),
        (complexity, ["--model", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (complexity, ["--model", "vit_tiny_patch16_224", "--size", "100"], "give its own size, --size 224 224"),
        (complexity, ["--model", "resnet18@nowhere.pth"], "there is no file nowhere.pth"),
        (complexity, ["--model", "pictures"], "write local-dir:pictures"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_2(
    tmp_path, pictures, monkeypatch, capsys, command, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "stimuli"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "x.png").touch()
    Image.new("L", (8, 8)).save(tmp_path / "stimuli" / "cat1-dog1.png")
    if "two.ckpt" in arguments:
        classifier("two.ckpt", in_chans=2)
    if "four.ckpt" in arguments:
        classifier("four.ckpt")
    if "segments.ckpt" in arguments:
        segmenter("segments.ckpt")
    given = [*arguments, "--out", "out"] if command is erf and "--out" not in arguments else arguments
    try:
        status = command.main(given)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1
    assert sentence in said[0]


def test_a_gpu_that_is_not_there_is_told(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch._C._cuda_init())  # as torch says it without one
    arguments = [*RANDOM, "--images", str(pictures), "--out", str(tmp_path / "out"), "--device", "cuda"]
    assert erf.main(arguments) == 2
    assert "the device 'cuda' cannot be used" in capsys.readouterr().err


def test_help_of_a_command_needs_no_lightning():
    code = (
        "import sys; from replk_lightning.commands import COMMANDS, run_command\n"
        "for name in ('erf', 'shape-bias', 'complexity', 'export'):\n"
        "    try: run_command(name, ['--help'])\n"
        "    except SystemExit as stopped: assert stopped.code == 0\n"
        "assert not {'lightning', 'matplotlib', 'onnx'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert COMMANDS.keys() == {"predict", "pseudo-label", "erf", "shape-bias", "complexity", "export", "timm"}
