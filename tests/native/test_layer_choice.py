"""Who computes an accelerated layer: the faster, by a measurement that is kept, and by rules where there is none."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import native
from native import autotune, layer_choice

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def layer():
    return native.accelerate(nn.Conv2d(16, 16, 9, padding=4, groups=16)).model


@pytest.fixture
def timed(monkeypatch):
    """Seconds that each way is said to take, and the shapes that were timed."""
    seconds, shapes, real = {"torch": 1.0, "operator": 2.0}, [], autotune.measure

    def measure(ways, call, part):
        if ways.keys() != seconds.keys():
            return real(ways, call, part)  # the operator's own plan
        shapes.append(tuple(call[0].shape))
        for way in ways.values():
            way(*part)
        return dict(seconds), True

    monkeypatch.setattr(autotune, "measure", measure)
    return seconds, shapes


def wins(layer, x):
    return layer_choice.operator_wins(layer, x, layer.weight, layer.bias)


@pytest.mark.parametrize(("seconds", "choice"), [(0.9, True), (0.96, False), (1.1, False)])
def test_the_operator_must_win_by_its_margin(layer, timed, seconds, choice):
    timed[0]["operator"] = seconds
    for _ in range(2):
        assert wins(layer, torch.randn(2, 16, 9, 9)) == choice
    assert timed[1] == [(2, 16, 9, 9)]
    assert layer_choice.choices(layer) == {choice}


def test_what_its_derivatives_cost_in_python_counts(layer, timed):
    timed[0].update(torch=1e-4, operator=5e-5)
    x = torch.randn(2, 16, 9, 9)
    assert not wins(layer, x)
    with torch.no_grad():
        assert wins(layer, x)
    with torch.inference_mode():
        assert wins(layer, x)


def test_gradients_layout_dtype_and_threads_are_kinds_of_their_own(layer, timed):
    x = torch.randn(2, 16, 9, 9)
    wins(layer, x)
    wins(layer, x.clone().requires_grad_())
    wins(layer, x.to(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        wins(layer, x)
    assert len(timed[1]) == 4
    wins(layer, torch.randn(2, 16, 9, 9))
    assert len(timed[1]) == 4


def test_the_choice_is_kept_on_disk(layer, timed, monkeypatch):
    wins(layer, torch.randn(2, 16, 9, 9))
    autotune.forget()
    timed[0]["operator"] = 0.1
    assert not wins(layer, torch.randn(2, 16, 9, 9))
    assert len(timed[1]) == 1


def test_timing_leaves_no_trace(layer):
    x = torch.randn(2, 16, 9, 9, requires_grad=True)
    state, saved = torch.get_rng_state(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(saved) <= 2
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_without_measuring_the_taps_decide(layer, monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    small = native.accelerate(nn.Conv2d(16, 16, 5, padding=2, groups=16)).model
    x = torch.randn(2, 16, 9, 9)
    assert wins(layer, x)
    assert not wins(small, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("kernel", "options", "training", "inference"), [
    (1, {}, 0, 0), (3, {}, 0, 0), (3, {"dilation": 2}, 1, 1), (3, {"dtype": torch.bfloat16}, 1, 1),
    (7, {}, 1, 0), ((1, 11), {}, 1, 1), (9, {}, 1, 1),
])  # fmt: skip
def test_what_torch_always_won_is_not_timed(kernel, options, training, inference, layout, timed, monkeypatch):
    monkeypatch.setattr(layer_choice, "ONEDNN", True)
    layer = native.accelerate(nn.Conv2d(16, 16, kernel, groups=16, padding="same", **options)).model
    x = torch.randn(2, 16, 12, 12, dtype=layer.weight.dtype).to(memory_format=layout)
    with torch.no_grad():
        assert not wins(layer, x)
    assert len(timed[1]) == inference
    assert not wins(layer, x)
    assert len(timed[1]) == inference + training


def test_a_mode_that_watches_the_ops_sees_torchs(layer, timed):
    timed[0]["operator"] = 0.1
    x = torch.randn(2, 16, 9, 9)
    assert wins(layer, x)
    with FlopCounterMode(display=False) as counter:
        assert not wins(layer, x)
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * 16 * 9 * 9 * 81


def test_other_kinds_of_tensors_stay_torchs(layer, timed):
    class Own(torch.Tensor):
        pass

    assert type(layer(torch.randn(2, 16, 9, 9).as_subclass(Own))) is Own
    assert timed[1] == []


@pytest.mark.parametrize(("seconds", "code"), [(0.9, "replk"), (1.1, "Convolution")])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_a_layer_of_ours_is_torchs_where_torch_is_faster(timed, seconds, code, activation):
    timed[0]["operator"] = seconds
    ours, x = native.DepthwiseConv2d(16, 9), torch.randn(2, 16, 9, 9, requires_grad=True)
    ours.activation = activation
    y = ours(x)
    node = y.grad_fn if activation is None or code == "replk" else y.grad_fn.next_functions[0][0]
    assert code in node.name()
    y.square().sum().backward()
    same = native.depthwise_conv2d(x.detach(), ours.weight, ours.bias, activation=activation)
    torch.testing.assert_close(y, same)


def test_where_flops_are_counted_a_layer_of_ours_stays_the_operators(timed):
    ours = native.DepthwiseConv2d(16, 9)
    with FlopCounterMode(display=False) as counter:
        ours(torch.randn(2, 16, 9, 9)).sum().backward()
    assert timed[1] == []
    assert counter.get_total_flops() == 2 * 2 * 2 * 16 * 9**2 * 9**2


def test_calls_that_are_torchs_are_remembered_by_all_that_tells_them_apart(timed):
    timed[0]["operator"] = 2.0
    x, weight, bias = torch.randn(2, 16, 9, 9), torch.randn(16, 1, 9, 9), torch.randn(16)
    expected = native.depthwise_conv2d(x, weight, bias)
    torch.testing.assert_close(native.depthwise_conv2d(x, weight, bias), expected)
    with pytest.raises(ValueError, match="bias must have shape"):
        native.depthwise_conv2d(x, weight, bias[:8])
    with pytest.raises(TypeError, match=r"bias is torch\.float64"):
        native.depthwise_conv2d(x, weight, bias.double())
    with pytest.raises(TypeError, match=r"weight is torch\.float64"):
        native.depthwise_conv2d(x, weight.double(), bias)
    torch.testing.assert_close(native.depthwise_conv2d(x, weight, bias, padding=0), expected[..., 4:5, 4:5])
    autotune.forget()
    timed[0]["operator"] = 0.5
    probe = x.requires_grad_()
    assert "replk" in native.depthwise_conv2d(probe, weight, bias).grad_fn.name()
