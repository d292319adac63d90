"""Which layout is chosen for a net: by its margin, on a copy, in the precision that is asked for."""

import itertools

import pytest
import timm
import torch
from process_states import STATES

import replk_lightning  # noqa: F401  (registers the nets)
from replk_lightning.measure import layouts
from replk_lightning.measure.layouts import ROUNDS, faster, fastest_layout, layout_seconds
from replk_lightning.models.blocks import RepLKNetStage
from replk_lightning.models.classifier import classifiers

TINY = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_classes": 3, "drop_path_rate": 0.2}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model("replknet_3", **TINY)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def spy(monkeypatch):
    """What the nets' first stages put out from now on."""
    seen, forward = [], RepLKNetStage.forward

    def watched(stage, x):
        y = forward(stage, x)
        if y.shape[1] == TINY["dims"][0]:
            seen.append(y)
        return y

    monkeypatch.setattr(RepLKNetStage, "forward", watched)
    return seen


def clock(*seconds):
    """A clock by which steps take these seconds in turn."""
    now = 0.0
    for each in itertools.cycle(seconds):
        yield now
        now += each
        yield now


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([0.9] * 8, "nchw"),
        ([0.98] * 8, "channels_last"),  # within the margin
        ([0.5] * 5 + [1.1] * 3, "channels_last"),  # too often slower, whatever the mean
        ([0.9] * 6 + [5.0] * 2, "nchw"),  # two busy moments
        ([2.0] * 8, "channels_last"),
    ],
)
def test_the_rules_layout_stays_unless_the_other_is_clearly_faster(others, chosen):
    assert faster({"channels_last": [1.0] * 8, "nchw": others}) == chosen


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((1.0, 0.9), torch.contiguous_format), ((1.0, 0.99), torch.channels_last), ((0.9, 1.0), torch.channels_last)],
)
def test_the_clock_decides_and_the_rules_layout_goes_first(net, images, seconds, chosen):
    told = clock(*seconds)
    assert fastest_layout(net, images, clock=lambda: next(told)) is chosen


@pytest.mark.parametrize("training", [False, True])
def test_both_layouts_are_really_timed_and_the_net_stays_as_it_is(net, images, training, monkeypatch):
    seen, watched = spy(monkeypatch), []
    net.stem[0].register_forward_hook(lambda *_: watched.append("a hook"))
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    seconds = layout_seconds(net, images, training)
    assert {name: len(each) for name, each in seconds.items()} == {"channels_last": ROUNDS, "nchw": ROUNDS}
    assert all(each > 0 for times in seconds.values() for each in times)
    assert [y.is_contiguous() for y in seen] == [False, True] * (ROUNDS + 1)
    assert not watched
    assert len(net.stem[0]._forward_hooks) == 1
    assert net.memory_format is None
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("state", STATES)
def test_the_precision_is_what_is_asked_for_whatever_the_state_of_the_process(
    net, images, state, autocast, monkeypatch
):
    monkeypatch.setattr(layouts, "ROUNDS", 1)
    seen = spy(monkeypatch)
    with STATES[state]():
        assert fastest_layout(net, images, True, autocast) in (torch.channels_last, torch.contiguous_format)
    assert {(y.dtype, y.requires_grad) for y in seen} == {(autocast or torch.float32, True)}


def test_a_frozen_net_and_a_module_around_nets_are_timed(net, images, monkeypatch):
    monkeypatch.setattr(layouts, "ROUNDS", 1)
    assert fastest_layout(net.requires_grad_(False), images, training=True)
    features = timm.create_model("replknet_3", features_only=True, out_indices=(0, 1), **TINY)
    (inside,) = classifiers(features).values()  # what a segmenter's or detector's training times
    assert fastest_layout(features, images, training=True)
    assert fastest_layout(inside, images[..., :27], training=True)


def test_a_net_of_others_has_no_layout_to_choose(images):
    with pytest.raises(ValueError, match="ResNet holds no net of this package"):
        fastest_layout(timm.create_model("test_resnet"), images)
