"""The depthwise convolution of sequences is torch's, in either layout."""

import copy

import pytest
import torch
from torch import nn

import native
from native.accuracy import relative_error


@pytest.fixture(autouse=True)
def fixed_plan(monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")


@pytest.fixture(params=["planes", "steps"])
def x(request):
    generator = torch.Generator().manual_seed(0)
    if request.param == "planes":
        return torch.randn(2, 16, 40, generator=generator)
    return torch.randn(2, 40, 16, generator=generator).transpose(1, 2)


def step(layer, x):
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


OPTIONS = {
    "Conformer": (31, {}),
    "stride": (9, {"stride": 3, "bias": False}),
    "dilation": (5, {"dilation": 2, "padding": 1}),
    "same": (8, {"padding": "same"}),
    "valid": (7, {"padding": "valid"}),
    "no padding": (31, {"padding": 0}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own
@pytest.mark.parametrize("kind", OPTIONS)
def test_outputs_and_gradients_are_torchs(kind, x):
    kernel, options = OPTIONS[kind]
    ours = native.DepthwiseConv1d(16, kernel, **options)
    stock = nn.Conv1d(16, 16, kernel, groups=16, **{"padding": ours.padding} | options)
    stock.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(stock).replace("Conv1d", "DepthwiseConv1d")
    exact = step(copy.deepcopy(stock).double(), x.double())
    for own, torchs, right in zip(step(ours, x), step(stock, x), exact, strict=True):
        assert own.shape == right.shape
        assert relative_error(own, right) <= 2 * relative_error(torchs, right) + 2**-24


def test_the_layout_is_kept(x):
    y = native.DepthwiseConv1d(16, 31)(x)
    assert (y.stride(1) == 1) == (x.stride(1) == 1)


@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|trace_method|script). is deprecated:FutureWarning")
def test_other_ways_to_look_at_it(x):
    layer = native.DepthwiseConv1d(16, 31)
    y = layer(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    exported = torch.export.export(layer, (x,)).module()
    for other in (compiled, exported, torch.jit.trace(layer, x), torch.fx.symbolic_trace(layer), copy.deepcopy(layer)):
        torch.testing.assert_close(other(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="TorchScript does not compile"):
        torch.jit.script(layer)


def test_wrong_arguments_are_named(x):
    layer = native.DepthwiseConv1d(16, 31)
    with pytest.raises(ValueError, match=r"x must be \(N, C, T\), not of shape \(16, 40\)"):
        layer(x[0])
    with pytest.raises(ValueError, match="weight must have shape"):
        layer(x[:, :8])
