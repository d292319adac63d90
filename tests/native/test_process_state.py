"""What a process sets for itself reaches no result: every CPU way under defaults, modes and autocast."""

import contextlib

import pytest
import torch

import native
from native import autotune, cpu, emulator, reference

OPS = torch.ops.replk
SHAPE, KERNEL = (2, 16, 28, 28), (11, 11)  # every way can compute it
FUNCTIONS = ("forward", "grad_input", "grad_weight")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


STATES = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
    "one thread": lambda: threads(1),
    "two threads": lambda: threads(2),
}


def problem(shape, kernel, dtype):
    """The three functions' arguments and exact results."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(size, dtype=torch.float64, generator=generator).to(dtype)
        for size in (shape, (shape[1], 1, *kernel), shape[1:2], shape)
    )
    arguments = {"forward": (x, weight, bias), "grad_input": (grad, weight, shape), "grad_weight": (grad, x, kernel)}
    padding = tuple(k // 2 for k in kernel)
    geometry = ((1, 1), padding, (1, 1))
    exact = {
        name: getattr(reference, name)(*(a.double() if isinstance(a, torch.Tensor) else a for a in args), *geometry)
        for name, args in arguments.items()
    }
    return arguments, geometry, exact


def call(function, backend, arguments, geometry):
    op = {"forward": OPS.depthwise_conv2d}.get(function) or getattr(OPS, f"depthwise_conv2d_{function}")
    return op(*arguments, *geometry, backend)


def error(result, exact):
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("state", STATES)
def test_every_way_of_the_plan(state, function, dtype, monkeypatch):
    arguments, geometry, exact = problem(SHAPE, KERNEL, dtype)
    computed = torch.bfloat16 if (state, function) == ("autocast", "forward") else dtype
    ways = cpu._ways(function, computed, SHAPE[1], SHAPE[2:], KERNEL, *geometry)
    if function == "grad_weight":
        del ways["channels_last"]  # the plan takes the tensors' own layout
    for way in ways:
        monkeypatch.setattr(cpu, "_chosen", {})
        monkeypatch.setattr(autotune, "choose", lambda *_, way=way: way)
        with STATES[state]():
            result = call(function, "cpu", arguments[function], geometry)
        assert result.dtype == computed
        assert result.device.type == "cpu"
        assert error(result, exact[function]) < (1e-5 if result.dtype == torch.float32 else 1e-2), way


@pytest.mark.parametrize("backend", ["torch", "reference", "emulated"])
@pytest.mark.parametrize("state", STATES)
def test_every_backend(state, backend):
    if backend == "emulated" and emulator.why_not_here():
        pytest.skip("no C++ compiler on this machine")
    arguments, geometry, exact = problem((1, 2, 8, 8), (3, 3), torch.float32)
    for function in FUNCTIONS:
        with STATES[state]():
            result = call(function, backend, arguments[function], geometry)
        assert error(result, exact[function]) < (1e-5 if result.dtype == torch.float32 else 3e-2), function


@pytest.mark.parametrize("state", [s for s in STATES if s not in ("autocast", "inference mode")])
def test_a_step_of_training(state, monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    layers = [native.DepthwiseConv2d(16, k) for k in (3, 13)]
    net, x = torch.nn.Sequential(*layers), torch.randn(2, 16, 14, 14)

    def gradients():
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_chosen", {})
            return torch.autograd.grad(net(x).square().sum(), [*net.parameters()])

    expected = gradients()
    with STATES[state]():
        result = gradients()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_net_of_16_bits_trains_where_16_bits_are_the_default(dtype, monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    with default_dtype(dtype):
        net = torch.nn.Sequential(native.DepthwiseConv2d(16, 13), native.DepthwiseConv2d(16, 3, stride=2))
        x = torch.randn(2, 16, 14, 14)
        net(x).square().mean().backward()
    exact = [p.detach().double().requires_grad_() for p in net.parameters()]
    y = native.depthwise_conv2d(x.double(), *exact[:2])
    native.depthwise_conv2d(y, *exact[2:], stride=2).square().mean().backward()
    for ours, right in zip(net.parameters(), exact, strict=True):
        assert ours.grad.dtype == dtype
        assert error(ours.grad, right.grad) < 3e-2


def test_gradients_under_autocast_have_the_forwards_precision():
    x, weight = torch.randn(2, 16, 14, 14, requires_grad=True), torch.randn(16, 1, 13, 13, requires_grad=True)
    y = native.depthwise_conv2d(x, weight)
    expected = torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = torch.autograd.grad(y.sum(), (x, weight))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_autocast_does_not_let_the_op_mix_dtypes():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"weight is torch\.bfloat16, x is"):
        native.depthwise_conv2d(torch.randn(1, 2, 5, 5).double(), torch.randn(2, 1, 5, 5))
