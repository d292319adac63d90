"""The operator: values, derivatives, registration, and the errors of wrong arguments."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import native
from native import autotune, cpu, dispatch, reference

OPS = torch.ops.replk
BACKENDS = ("torch", "reference", "cpu")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Choices of the CPU plan made here stay here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        autotune.forget()
        yield
    autotune.forget()


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@st.composite
def geometries(draw):
    """Any size, kernel, stride, padding and dilation that leave an output pixel."""
    axis = st.tuples(*(st.integers(low, high) for low, high in ((1, 12), (1, 9), (1, 4), (0, 6), (1, 3))))
    fits = axis.filter(lambda a: a[0] + 2 * a[3] - a[4] * (a[1] - 1) >= 1)
    return tuple(zip(draw(fits), draw(fits), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    geometries(), st.integers(0, 3), st.sampled_from((1, 2, 5)), st.booleans(), st.sampled_from(("nchw", "nhwc", "cut"))
)
def test_any_geometry_in_any_layout_agrees_with_the_definition(geometry, n, c, with_bias, layout):
    size, kernel, *rest = geometry
    x, weight, bias = randn(n, c, *size), randn(c, 1, *kernel, seed=1), randn(c, seed=2) if with_bias else None
    exact = reference.forward(x, weight, bias, *rest)
    grad = randn(*exact.shape, seed=3)
    if layout == "nhwc":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "cut":
        x = F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2]
    x.requires_grad_(), weight.requires_grad_()
    stride, padding, dilation = rest
    y = native.depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    gx, gw = torch.autograd.grad(y, (x, weight), grad)
    torch.testing.assert_close(y, exact, check_stride=False)
    torch.testing.assert_close(gx, reference.grad_input(grad, weight.detach(), tuple(x.shape), *rest))
    torch.testing.assert_close(gw, reference.grad_weight(grad, x.detach(), kernel, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_and_second_derivatives(backend):
    x, weight, bias = (t.requires_grad_() for t in (randn(2, 3, 5, 6), randn(3, 1, 3, 4, seed=1), randn(3, seed=2)))

    def call(x, weight, bias):
        return native.depthwise_conv2d(x, weight, bias, stride=(2, 1), padding=(2, 1), dilation=(1, 2), backend=backend)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_may_be_expanded_or_transposed(backend):
    x, weight = randn(2, 4, 6, 6).requires_grad_(), randn(4, 1, 5, 5, seed=1).requires_grad_()
    y = native.depthwise_conv2d(x, weight, backend=backend)
    for grad in (torch.ones(1, dtype=y.dtype).expand_as(y), randn(2, 4, 6, 6, seed=2).transpose(2, 3)):
        gx, gw = torch.autograd.grad(y, (x, weight), grad, retain_graph=True)
        torch.testing.assert_close(
            gx, reference.grad_input(grad, weight.detach(), (2, 4, 6, 6), (1, 1), (2, 2), (1, 1))
        )
        torch.testing.assert_close(gw, reference.grad_weight(grad, x.detach(), (5, 5), (1, 1), (2, 2), (1, 1)))


def test_only_the_gradients_asked_for_are_computed(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "grad_input", lambda *a: called.append("x"))
    weight = randn(3, 1, 3, 3).requires_grad_()
    native.depthwise_conv2d(randn(1, 3, 4, 4), weight, backend="reference").sum().backward()
    assert weight.grad is not None
    assert called == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [None, randn(4, dtype=torch.float32)])
def test_opcheck(memory_format, bias):
    x = randn(2, 4, 7, 6, dtype=torch.float32).to(memory_format=memory_format).requires_grad_()
    weight = randn(4, 1, 3, 4, dtype=torch.float32).requires_grad_()
    geometry = ((2, 1), (2, 1), (1, 2), "auto")
    grad = torch.randn_like(OPS.depthwise_conv2d(x, weight, bias, *geometry)).requires_grad_()
    torch.library.opcheck(OPS.depthwise_conv2d.default, (x, weight, bias, *geometry))
    torch.library.opcheck(OPS.depthwise_conv2d_grad_input.default, (grad, weight, x.shape, *geometry))
    torch.library.opcheck(OPS.depthwise_conv2d_grad_weight.default, (grad, x, (3, 4), *geometry))


@pytest.mark.parametrize("n", [0, 1])
def test_batches_of_none_and_one(n):
    x, weight = randn(n, 3, 5, 5).requires_grad_(), randn(3, 1, 3, 3).requires_grad_()
    y = native.depthwise_conv2d(x, weight, stride=2)
    y.sum().backward()
    assert y.shape == (n, 3, 3, 3)
    assert x.grad.shape == x.shape
    assert (weight.grad == 0).all() == (n == 0)


def test_the_output_keeps_the_memory_format():
    x, weight = randn(2, 3, 5, 5), randn(3, 1, 3, 3)
    for backend in BACKENDS:
        assert native.depthwise_conv2d(x, weight, backend=backend).is_contiguous()
        y = native.depthwise_conv2d(x.to(memory_format=torch.channels_last), weight, backend=backend)
        assert y.is_contiguous(memory_format=torch.channels_last)


# --- registration ----------------------------------------------------------------------------------------------------


def test_autocast_casts_as_a_convolution_does():
    x, weight = randn(2, 4, 6, 6, dtype=torch.float32).requires_grad_(), randn(4, 1, 3, 3, dtype=torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = native.depthwise_conv2d(x, weight)
        mixed = native.depthwise_conv2d(x.bfloat16(), weight)
        double = native.depthwise_conv2d(x.double(), weight.double())
    assert y.dtype == mixed.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    torch.testing.assert_close(y, mixed)
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_flops_count_two_for_each_multiply_add_on_any_device():
    expected = 2 * 2 * 8 * 9 * 9 * 5 * 5
    layer, x = native.DepthwiseConv2d(8, 5), torch.randn(2, 8, 9, 9)
    with FlopCounterMode(display=False) as ours:
        layer(x)
    with FlopCounterMode(display=False) as torchs:
        F.conv2d(x, layer.weight, layer.bias, padding=2, groups=8)
    assert ours.get_total_flops() == torchs.get_total_flops() == expected
    with FlopCounterMode(display=False) as training:
        layer(x.requires_grad_()).sum().backward()
    assert training.get_total_flops() == 3 * expected
    with FlopCounterMode(display=False) as meta:
        y = layer.to("meta")(x.to("meta"))
    assert y.shape == x.shape
    assert meta.get_total_flops() == expected


def test_the_module_is_a_conv2d():
    ours = native.DepthwiseConv2d(6, (3, 5), stride=2, dilation=(1, 2))
    stock = nn.Conv2d(6, 6, (3, 5), stride=2, padding=(1, 4), dilation=(1, 2), groups=6)
    stock.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(stock).replace("Conv2d", "DepthwiseConv2d")
    assert ours.padding == (1, 4)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(ours(x), stock(x))
    torch.testing.assert_close(copy.deepcopy(ours)(x), stock(x))
    assert native.DepthwiseConv2d(2, 3, bias=False, dtype=torch.float64).weight.dtype == torch.float64
    assert native.DepthwiseConv2d(2, 4, padding=0).padding == (0, 0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [3, 4, (4, 3), 13])
def test_named_paddings_are_torchs(kernel, layout):
    for padding, dilation in (("same", 1), ("same", (1, 3)), ("valid", 1)):
        ours = native.DepthwiseConv2d(4, kernel, padding=padding, dilation=dilation)
        stock = nn.Conv2d(4, 4, kernel, padding=padding, dilation=dilation, groups=4)
        stock.load_state_dict(ours.state_dict())
        assert repr(ours) == repr(stock).replace("Conv2d", "DepthwiseConv2d")
        x = torch.randn(2, 4, 15, 14).to(memory_format=layout)
        torch.testing.assert_close(ours(x), stock(x), check_stride=padding == "same")
        y = native.depthwise_conv2d(x, ours.weight, ours.bias, padding=padding, dilation=dilation)
        torch.testing.assert_close(y, stock(x))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("kernel", [1, 3, 13, (3, 1), (1, 5)])
def test_a_weights_gradient_has_its_strides(kernel, backend):
    taps = (kernel, kernel) if isinstance(kernel, int) else kernel
    for x_layout, layout in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        weight = randn(16, 1, *taps, dtype=torch.float32).to(memory_format=layout).requires_grad_()
        x = randn(2, 16, 9, 9, dtype=torch.float32).to(memory_format=x_layout)
        native.depthwise_conv2d(x, weight, backend=backend).sum().backward()
        assert weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("kernel", [3, 13])
def test_the_module_takes_full_backward_hooks(kernel):
    seen = []
    layer, x = native.DepthwiseConv2d(4, kernel), torch.randn(1, 4, 6, 6, requires_grad=True)
    layer.register_full_backward_hook(lambda _, gx, gy: seen.extend((*gx, *gy)))
    layer(x).sum().backward()
    torch.testing.assert_close(seen, [x.grad, torch.ones(1, 4, 6, 6)])


def test_the_module_is_pickled_and_copied():
    layer, x = native.DepthwiseConv2d(4, (5, 4), padding="same"), torch.randn(1, 4, 6, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


# --- backends --------------------------------------------------------------------------------------------------------


def test_backends_are_named_and_say_why_not():
    assert set(BACKENDS) <= set(native.backends())
    for name in native.backends():
        assert native.why_not(name) is None
    for name in set(dispatch.MODULES) - set(native.backends()):
        assert len(native.why_not(name)) > 10
    with pytest.raises(ValueError, match=r"backend must be one of auto, torch, .*emulated"):
        native.why_not("cudnn")
    with pytest.raises(ValueError, match="backend must be one of"):
        native.depthwise_conv2d(randn(1, 2, 3, 3), randn(2, 1, 3, 3), backend="cudnn")


def test_a_named_backend_that_cannot_says_so(monkeypatch):
    monkeypatch.setattr(reference, "why_not", lambda *_: "it is Sunday")
    x, weight = randn(1, 2, 3, 3), randn(2, 1, 3, 3)
    with pytest.raises(RuntimeError, match="'reference' cannot compute this: it is Sunday"):
        native.depthwise_conv2d(x, weight, backend="reference")
    monkeypatch.setattr(cpu, "why_not", lambda *_: "it is Sunday")
    torch.testing.assert_close(native.depthwise_conv2d(x, weight), F.conv2d(x, weight, padding=1, groups=2))


# --- wrong arguments -------------------------------------------------------------------------------------------------

GOOD = {"x": torch.randn(2, 3, 5, 5), "weight": torch.randn(3, 1, 3, 3), "bias": torch.randn(3)}
WRONG = [
    ({"x": [1.0]}, TypeError, "x must be a tensor"),
    ({"x": torch.randn(3, 5, 5)}, ValueError, "x must have 4 dimensions"),
    ({"x": torch.ones(2, 3, 5, 5, dtype=torch.int64)}, TypeError, "x must be float16, .* not torch.int64"),
    ({"x": torch.ones(2, 3, 5, 5, dtype=torch.complex64)}, TypeError, "x must be float16"),
    ({"x": torch.randn(2, 0, 5, 5)}, ValueError, "x must have at least one channel"),
    ({"x": torch.randn(2, 3, 0, 5)}, ValueError, "x must be at least one pixel"),
    ({"x": torch.randn(2, 3, 5, 5).to_sparse()}, TypeError, "x must be a dense tensor"),
    ({"weight": torch.randn(3, 3, 3)}, ValueError, "weight must have 4 dimensions"),
    ({"weight": torch.randn(3, 3, 3), "padding": 1}, ValueError, "weight must have 4 dimensions"),
    ({"weight": torch.randn(6, 1, 3, 3)}, ValueError, r"weight must have shape \(3, 1, Kh, Kw\)"),
    ({"weight": torch.randn(3, 3, 3, 3)}, ValueError, r"weight must have shape \(3, 1, Kh, Kw\)"),
    ({"weight": torch.randn(3, 1, 0, 3)}, ValueError, "weight must hold at least one tap"),
    ({"weight": torch.randn(3, 1, 3, 3).double()}, TypeError, "weight is torch.float64, x is torch.float32"),
    ({"weight": torch.randn(3, 1, 3, 3, device="meta")}, ValueError, "weight is on meta, x is on cpu"),
    ({"weight": torch.randn(3, 1, 9, 9), "padding": 0}, ValueError, "weight's .* taps"),
    ({"bias": torch.randn(4)}, ValueError, r"bias must have shape \(3,\)"),
    ({"bias": torch.randn(3, 1)}, ValueError, r"bias must have shape \(3,\)"),
    ({"bias": torch.randn(3).half()}, TypeError, "bias is torch.float16"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"stride": 1.0}, TypeError, "stride must be an int or a pair of ints"),
    ({"padding": -1}, ValueError, "padding must be at least 0"),
    ({"padding": "reflect"}, ValueError, "padding must be an int, a pair of ints, 'same' or 'valid', not 'reflect'"),
    ({"padding": "same", "stride": (1, 2)}, ValueError, r"padding 'same' needs stride 1, not \(1, 2\)"),
    ({"dilation": (1, 2, 3)}, TypeError, "dilation must be an int"),
    ({"dilation": (0, 1)}, ValueError, "dilation must be at least 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_a_wrong_argument_is_named(change, error, message):
    arguments = {**GOOD, **change}
    with pytest.raises(error, match=message):
        native.depthwise_conv2d(arguments.pop("x"), arguments.pop("weight"), arguments.pop("bias"), **arguments)


def test_the_raw_ops_check_too():
    x, weight, geometry = GOOD["x"], GOOD["weight"], ((1, 1), (1, 1), (1, 1), "cpu")
    with pytest.raises(ValueError, match="weight must have shape"):
        OPS.depthwise_conv2d(x, weight[:2], None, *geometry)
    with pytest.raises(ValueError, match="grad must have the output's shape"):
        OPS.depthwise_conv2d_grad_input(x, weight, (2, 3, 9, 9), *geometry)
    with pytest.raises(ValueError, match="grad must have the output's shape"):
        OPS.depthwise_conv2d_grad_weight(x[..., :4], x, (3, 3), *geometry)
    with pytest.raises(TypeError, match=r"grad is torch\.float64"):
        OPS.depthwise_conv2d_grad_weight(x.double(), x, (3, 3), *geometry)


def test_not_a_number_goes_through():
    x = torch.randn(1, 3, 5, 5)
    x[0, 0, 0, 0] = torch.nan
    y = native.depthwise_conv2d(x, GOOD["weight"])
    assert y[0, 0, :2, :2].isnan().all()
    assert not y[0, 1:].isnan().any()
