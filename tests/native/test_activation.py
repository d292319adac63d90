"""The operator's activation: values and derivatives are those of the two steps, whoever computes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from native import DepthwiseConv2d, depthwise_conv2d, emulator
from native.accuracy import Case, compare

STEPS = {"relu": F.relu, "relu6": F.relu6}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def operands(kernel, dtype=torch.float64, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 9, 10, generator=generator, dtype=dtype).contiguous(memory_format=layout)
    w = torch.randn(16, 1, kernel, kernel, generator=generator, dtype=dtype)
    return x, w, torch.randn(16, generator=generator, dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference", "cpu"])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("activation", STEPS)
def test_values_and_gradients_are_those_of_two_steps(activation, kernel, backend, layout):
    tensors = [t.requires_grad_() for t in operands(kernel, layout=layout)]
    y = depthwise_conv2d(*tensors, activation=activation, backend=backend)
    expected = STEPS[activation](depthwise_conv2d(*tensors, backend="reference"))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(result.square().sum(), tensors) for result in (y, expected))
    for own, stock in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, stock, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", STEPS)
def test_second_derivatives(activation):
    tensors = [t[:1, :2].detach().requires_grad_() for t in operands(5)[:2]]
    tensors[1] = operands(5)[1][:2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise_conv2d(x, w, activation=activation).square(), tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("activation", STEPS)
def test_opcheck(activation):
    x, w, bias = (t.requires_grad_() for t in operands(5))
    torch.library.opcheck(
        torch.ops.replk.depthwise_conv2d.default, (x, w, bias, (1, 1), (2, 2), (1, 1), "cpu", activation)
    )


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("activation", STEPS)
def test_not_a_number_stays_and_limits_hold(activation, kernel):
    x, w, _ = operands(kernel, torch.float32, torch.channels_last)
    x[0, 0, 0, 0] = torch.nan
    y = depthwise_conv2d(x, w, activation=activation)
    assert y[0, 0, 0, 0].isnan()
    assert y[1].min() == 0
    assert (y[1].max() <= 6) == (activation == "relu6")


def test_a_wrong_name_is_told():
    x, w, _ = operands(5)
    with pytest.raises(ValueError, match="activation must be 'relu', 'relu6' or None, not 'gelu'"):
        depthwise_conv2d(x, w, activation="gelu")
    with pytest.raises(ValueError, match="not 'gelu'"):
        torch.ops.replk.depthwise_conv2d(x, w, None, (1, 1), (2, 2), (1, 1), "auto", "gelu")


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_layer_says_and_keeps_its_activation(padding_mode):
    layer = DepthwiseConv2d(16, 5)
    layer.activation, layer.padding_mode = "relu", padding_mode
    layer._reversed_padding_repeated_twice = [2, 2, 2, 2]
    x = operands(5, torch.float32)[0]
    assert repr(layer).endswith("activation=relu)")
    for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (same(x) == F.relu(nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias))).float().mean() > 0.4
        assert same(x).min() == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated", "ignore:.torch.jit.trace_method. is deprecated")
def test_exported_and_traced_layers_keep_it():
    layer = DepthwiseConv2d(16, 5).eval()
    layer.activation = "relu6"
    x = operands(5, torch.float32)[0]
    expected = layer(x)
    exported = torch.export.export(layer, (x,)).module()
    for other in (exported, torch.jit.trace(layer, x)):
        torch.testing.assert_close(other(x), expected)


CASES = [
    (Case((9, 13), (3, 3), activation="relu"), "float32"),
    (Case((14, 14), (13, 13), activation="relu6"), "float16"),
    (Case((9, 16), (5, 5), bias=False, activation="relu"), "tf32"),
    (Case((7, 7), (5, 5), channels=8, activation="relu", last=True), "bfloat16"),
]


@pytest.mark.skipif(emulator.why_not_here() is not None, reason="not Linux, or no C++ compiler")
@pytest.mark.parametrize(("case", "number"), CASES, ids=str)
def test_the_kernels_compute_it(case, number):
    forward, *_ = compare("emulated", case, number, "cpu")
    assert forward.holds, forward


@pytest.mark.skipif(emulator.why_not_here() is not None, reason="not Linux, or no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("activation", STEPS)
def test_a_kernels_activation_is_that_of_its_own_result(activation, dtype):
    x, w, bias = (10 * t for t in operands(5, dtype))
    x[0, 0, 0, 0] = torch.nan
    plain = depthwise_conv2d(x, w, bias, backend="emulated")
    fused = depthwise_conv2d(x, w, bias, activation=activation, backend="emulated")
    torch.testing.assert_close(fused, STEPS[activation](plain), rtol=0, atol=0, equal_nan=True)
