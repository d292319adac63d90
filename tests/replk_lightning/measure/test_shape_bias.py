import numpy as np
import pytest
import torch
from PIL import Image
from process_states import STATES
from torch import nn

from replk_lightning.data.augment import Augmentation
from replk_lightning.measure.shape_bias import (
    StimuliError,
    decide,
    find_stimuli,
    imagenet_classes,
    measure_stimuli,
    shape_bias,
)


def test_geirhos_definition_by_hand():
    decisions = ["cat", "cat", "dog", "car", "dog", "dog", "cat"]
    shapes = ["cat", "cat", "cat", "cat", "dog", "dog", "cat"]
    textures = ["dog", "dog", "dog", "dog", "cat", "car", "cat"]  # the last has equal cues
    bias = shape_bias(decisions, shapes, textures)
    assert bias.per_class == {"cat": 2 / 3, "dog": 1.0}
    assert bias.mean == pytest.approx((2 / 3 + 1) / 2)
    assert bias.either == pytest.approx(5 / 6)


def test_a_class_without_a_decision_for_either_cue_is_left_out():
    bias = shape_bias(["car", "dog"], ["cat", "dog"], ["dog", "cat"])
    assert bias.per_class == {"dog": 1.0}
    assert (bias.mean, bias.either) == (1.0, 0.5)
    nothing = shape_bias(["car"], ["cat"], ["dog"])
    assert np.isnan(nothing.mean)
    assert nothing.either == 0


def test_lists_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="longer"):
        shape_bias(["cat"], ["cat", "dog"], ["dog", "cat"])


def test_the_class_map_has_sixteen_disjoint_classes_of_imagenet():
    from timm.data import ImageNetInfo

    classes = imagenet_classes()
    assert len(classes) == 16
    indices = [index for chosen in classes.values() for index in chosen]
    assert len(indices) == len(set(indices))
    assert {name: len(chosen) for name, chosen in classes.items() if len(chosen) > 8} == {"bird": 49, "dog": 109}
    describe = ImageNetInfo().index_to_description
    assert describe(classes["airplane"][0]) == "airliner"
    assert {describe(index).split(",")[0] for index in classes["elephant"]} == {"Indian elephant", "African elephant"}
    assert {describe(index).split(",")[0] for index in classes["bear"]} >= {"brown bear", "ice bear"}


def test_the_decision_is_by_the_mean_and_not_the_sum():
    probabilities = torch.zeros(2, 1000)
    probabilities[0, imagenet_classes()["dog"]] = 0.8 / 109  # a large sum over many classes
    probabilities[0, imagenet_classes()["oven"]] = 0.05
    probabilities[1, imagenet_classes()["dog"][3]] = 0.9
    probabilities[1, imagenet_classes()["oven"]] = 0.001
    assert decide(probabilities) == ["oven", "dog"]


SMALL = Augmentation().preprocessing(32)


class Brightness(nn.Module):
    """Says cat of a bright picture and elephant of a dark one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        logits = torch.zeros(len(x), 1000, device=x.device)
        logits[:, imagenet_classes()["cat"]] = 9.0 * (x.mean() > 0)
        logits[:, imagenet_classes()["elephant"]] = 9.0 * (x.mean() <= 0)
        return logits


def test_a_folder_of_stimuli(tmp_path):
    for name, grey in (("cat/cat1-elephant2", 250), ("cat/cat2-elephant1", 3), ("elephant/elephant1-cat1", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 40), grey).save(tmp_path / f"{name}.png")
    Image.new("L", (40, 40)).save(tmp_path / "cat" / "cat4-cat9.png")  # equal cues
    Image.new("L", (40, 40)).save(tmp_path / "cat" / "sofa4-cat9.png")  # no class of theirs
    assert [(shape, texture) for _, shape, texture in find_stimuli(tmp_path)] == [
        ("cat", "elephant"), ("cat", "elephant"), ("cat", "cat"), ("elephant", "cat"),
    ]  # fmt: skip
    net = Brightness().train()
    net.frozen = nn.BatchNorm2d(3).eval()
    bias = measure_stimuli(net, tmp_path, SMALL)
    assert bias.per_class == {"cat": 0.5, "elephant": 1.0}
    assert net.training
    assert not net.frozen.training


def test_a_folder_without_stimuli_is_told(tmp_path):
    with pytest.raises(StimuliError, match="no stimulus such as"):
        find_stimuli(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_process_changes_no_decision(state, dtype, tmp_path):
    for name, grey in (("cat1-elephant2", 250), ("elephant1-cat1", 3)):
        Image.new("L", (40, 40), grey).save(tmp_path / f"{name}.png")
    seen = []

    class Watched(Brightness):
        def forward(self, x):
            seen.append((x.device.type, x.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    net = Watched().to(dtype)
    with STATES[state]():
        assert measure_stimuli(net, tmp_path, SMALL).mean == 1
    assert set(seen) == {("cpu", dtype, False)}
