"""The examples as their first lines say, on a little data; each is short and answers errors in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from replk_lightning import examples
from replk_lightning.examples import accelerate_yours, erf_of_yours, fine_tune

FILES = sorted(path for path in Path(examples.__file__).parent.glob("*.py") if path.stem != "__init__")


def my_net():
    return torchvision.models.mobilenet_v3_small(num_classes=2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    colours = {"dark": 40, "light": 200}
    for split, count in (("train", 8), ("val", 2)):
        for name, grey in colours.items():
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(grey - 20, grey + 20, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return str(tmp_path / "photos")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_their_command(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].startswith(f'"""python -m replk_lightning.examples.{path.stem} ')


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*tensorboardX")
def test_a_net_is_fine_tuned_on_a_folder(folder, capsys):
    torch.save(timm.create_model("mobilenetv2_lk", num_classes=5).state_dict(), "weights.pth")
    size = ["--size", "32", "--batch-size", "4", "--epochs", "1", "--workers", "0"]
    assert fine_tune.main([folder, "--model", "mobilenetv2_lk", "--weights", "weights.pth", *size]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("best top-1 ")
    checkpoint = torch.load(said.rpartition(": ")[2], weights_only=True)
    assert checkpoint["class_names"] == ["dark", "light"]


def test_a_net_of_ones_own_is_accelerated_and_timed(capsys):
    net = f"{__name__}.my_net"
    assert accelerate_yours.main([net, "--size", "64", "--batch-size", "1", "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    assert "forward: as it is " in out
    assert "training step: as it is " in out
    assert "depthwise layers ask the operator" in out


def test_the_field_of_a_net_of_ones_own_is_drawn(capsys):
    assert erf_of_yours.main([f"{__name__}.my_net", "--map", "features", "--size", "64", "--out", "a/erf.png"]) == 0
    with Image.open("a/erf.png") as drawn:
        assert drawn.size == (64, 64)
    assert "20% of the contributions lie in a square of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "argv", "sentence"),
    [
        (fine_tune.main, ["nowhere"], "fine_tune: There is no folder nowhere"),
        (accelerate_yours.main, ["nonesuch"], "accelerate_yours: no model 'nonesuch'"),
        (erf_of_yours.main, ["nonesuch"], "erf_of_yours: no model 'nonesuch'"),
        (erf_of_yours.main, [f"{__name__}.my_net", "--size", "32"], "erf_of_yours: MobileNetV3 gives no feature map"),
        (erf_of_yours.main, [f"{__name__}.my_net", "--map", "layer4"], "erf_of_yours: node: 'layer4' is not present"),
    ],
)
def test_what_is_wrong_gets_one_sentence_and_2(capsys, main, argv, sentence):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(sentence)
