"""Other people's nets, accelerated: what they compute, what they keep, what is left alone and why."""

import copy
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models.convnext import ConvNeXtBlock
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import native
from native import acceleration, layer_choice
from native.accuracy import relative_error
from replk_lightning import deploy

NETS = ("convnextv2_atto", "inception_next_atto", "efficientnet_b0", "mobilenetv3_small_100", "repghostnet_050")
ROUND_OFF = 1e-6  # relative, where torch happens to be exact


@pytest.fixture(autouse=True)
def every_layer_by_the_operator(monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    monkeypatch.setattr(layer_choice, "LARGE", 2)
    monkeypatch.setattr(layer_choice, "ONEDNN", False)
    monkeypatch.setattr(layer_choice, "_chosen", {})


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs that the operator has seen."""
    seen = []

    def call(x, *arguments, **options):
        seen.append(tuple(x.shape))
        return native.depthwise_conv2d(x, *arguments, **options)

    monkeypatch.setattr(acceleration, "depthwise_conv2d", call)
    return seen


def depthwise(kernel=7, channels=16, **options):
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, kernel, **{"groups": channels, "padding": "same"} | options)


def images(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def step(net, x):
    """The output and all gradients, x's first."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    y.square().mean().backward()
    return y.detach(), torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.parameters())])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", NETS)
def test_a_net_computes_what_it_did(name, layout, calls):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5).eval().to(memory_format=layout)
    x = images(2, 3, 48, 48).to(memory_format=layout)
    exact = step(copy.deepcopy(net).double(), x.double())
    stock, printed = step(net, x), repr(net)
    keys, parameters = list(net.state_dict()), {n: id(p) for n, p in net.named_parameters()}
    done = native.accelerate(net)
    assert done.model is net
    assert done.layers
    assert all(layer.reason is None for layer in done.layers)
    ours = step(net, x)
    assert calls
    for own, torchs, right in zip(ours, stock, exact, strict=True):
        assert relative_error(own, right) <= 2 * relative_error(torchs, right) + ROUND_OFF
    assert repr(net) == printed
    assert list(net.state_dict()) == keys
    assert {n: id(p) for n, p in net.named_parameters()} == parameters
    assert all(isinstance(layer.module, nn.Conv2d) for layer in done.layers)
    native.restore(net)
    assert not any(isinstance(module, acceleration.Conv2d) for module in net.modules())
    assert all(map(torch.equal, step(net, x), stock))


def test_a_copy_leaves_the_net_alone(calls):
    net = nn.Sequential(depthwise(), nn.ReLU(), depthwise(5))
    prune.l1_unstructured(net[2], "weight", 0.5)
    x = images(2, 16, 9, 9)
    y = net(x)
    fast = native.accelerate(net, inplace=False).model
    torch.testing.assert_close(net(x), y, rtol=0, atol=0)
    assert calls == []
    torch.testing.assert_close(fast(x), y)
    assert len(calls) == 2


def test_an_optimizer_made_before_trains_the_net_after():
    net, x = nn.Sequential(depthwise(), nn.ReLU()), images(2, 16, 9, 9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    stock = copy.deepcopy(net)
    stocks = torch.optim.SGD(stock.parameters(), lr=0.1, momentum=0.9)
    native.accelerate(net)
    for each, its in ((net, optimizer), (stock, stocks)):
        for _ in range(2):
            step(each, x)
            its.step()
    torch.testing.assert_close(dict(net.named_parameters()), dict(stock.named_parameters()))


GEOMETRIES = {
    "strip": {"kernel": (1, 11)},
    "even": {"kernel": (4, 6)},
    "stride": {"kernel": 7, "stride": 2, "padding": 3},
    "dilation": {"kernel": 5, "dilation": 3},
    "valid": {"kernel": 5, "padding": "valid"},
    "no padding, no bias": {"kernel": 7, "padding": 0, "bias": False},
    "double": {"kernel": 7, "dtype": torch.float64},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_any_geometry(kind, calls):
    layer = depthwise(**GEOMETRIES[kind])
    x = images(2, 16, 20, 18, dtype=layer.weight.dtype)
    stock = step(layer, x)
    native.accelerate(layer)
    for ours, torchs in zip(step(layer, x), stock, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_what_was_changed_later_counts(calls):
    layer, x = depthwise(padding=3), images(2, 16, 12, 12)
    fast = native.accelerate(layer, inplace=False).model
    for each in (layer, fast):
        each.stride, each.padding, each.dilation = (1, 1), (6, 6), (2, 2)  # as nets are made to keep their maps' size
    torch.testing.assert_close(fast(x), layer(x))
    layer.stride = fast.stride = [2, 2]
    torch.testing.assert_close(fast(x), layer(x))
    assert len(calls) == 1


COMPUTED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_are_computed_stay_so(kind, calls):
    layer, x = depthwise().eval(), images(2, 16, 9, 9)
    COMPUTED[kind](layer)
    y, printed, keys = layer(x), repr(layer), list(layer.state_dict())
    other = native.accelerate(layer, inplace=False).model
    assert not isinstance(layer, acceleration.Conv2d)
    native.accelerate(layer)
    for each in (layer, other):
        torch.testing.assert_close(each(x), y)
        assert repr(each) == printed
        assert list(each.state_dict()) == keys
    assert len(calls) == 2
    native.restore(layer)
    assert torch.equal(layer(x), y)
    native.accelerate(layer)
    if parametrize.is_parametrized(layer):
        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is acceleration.Conv2d
    torch.testing.assert_close(layer(x), y)


def test_a_parametrization_that_comes_later(calls):
    layer, x = depthwise().eval(), images(2, 16, 9, 9)
    native.accelerate(layer)
    parametrizations.weight_norm(layer)
    y = layer(x)
    native.restore(layer)
    torch.testing.assert_close(layer(x), y)
    assert len(calls) == 1


def test_a_lazy_layer_is_taken_when_it_knows_its_channels(calls):
    net = nn.Sequential(nn.LazyConv2d(16, 7, groups=16, padding=3), nn.LazyConv2d(4, 3, groups=4))
    done = native.accelerate(net)
    assert "known once it has seen a batch" in str(done)
    x = images(2, 16, 9, 9)
    y = net(x)  # the second has four channels a filter
    assert [type(layer) for layer in net] == [acceleration.Conv2d] * 2
    torch.testing.assert_close(net(x), y)
    assert set(calls) == {(2, 16, 9, 9)}
    native.restore(net)
    torch.testing.assert_close(net(x), y)


def test_hooks_see_what_they_saw(calls):
    layer, seen = depthwise(), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(type(module)))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer.register_full_backward_hook(lambda module, gx, gy: seen.append(gx[0].shape))
    native.accelerate(layer)
    step(layer, images(2, 16, 9, 9))
    assert seen == [acceleration.Conv2d, (2, 16, 9, 9), (2, 16, 9, 9)]
    assert len(calls) == 1


def test_a_shared_layer_comes_once(calls):
    layer = depthwise()
    done = native.accelerate(nn.Sequential(layer, nn.ReLU(), layer))
    assert [each.name for each in done.layers] == ["0"]
    done.model(images(1, 16, 9, 9))
    assert len(calls) == 2


class Adapted(nn.Module):
    """A layer and a change of low rank to its weight, which takes the layer's insides as such adapters do."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.change = nn.Parameter(torch.ones_like(conv.weight))

    def forward(self, x):
        return self.conv._conv_forward(x, self.conv.weight + self.change, self.conv.bias)


def test_an_adapter_around_a_layer(calls):
    net, x = Adapted(depthwise()), images(1, 16, 9, 9)
    y = net(x)
    native.accelerate(net)
    torch.testing.assert_close(net(x), y)
    assert len(calls) == 1


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def replaced():
    layer = depthwise()
    layer._conv_forward = lambda x, weight, bias: x
    return layer


LEFT = {
    "Conv2dSame is a subclass": lambda: Conv2dSame(8, 8, 3, groups=8),
    "StdConv2d is a subclass": lambda: StdConv2d(8, 8, 3, groups=8),
    "Doubled is a subclass": lambda: Doubled(8, 8, 3, groups=8),
    "qat.modules.conv.Conv2d is a subclass": lambda: torch.ao.nn.qat.Conv2d(
        8, 8, 3, groups=8, qconfig=torch.ao.quantization.default_qat_qconfig
    ),
    "quantized.modules.conv.Conv2d is not nn.Conv2d": lambda: torch.ao.nn.quantized.Conv2d(8, 8, 3, groups=8),
    "Conv1d is not nn.Conv2d": lambda: nn.Conv1d(8, 8, 3, groups=8),
    "ConvTranspose2d is not nn.Conv2d": lambda: nn.ConvTranspose2d(8, 8, 3, groups=8),
    "pads by padding_mode='reflect'": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"),
    "has 2 filters a channel": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "weight is torch.complex64": lambda: nn.Conv2d(8, 8, 3, groups=8, dtype=torch.complex64),
    "the operator's already": lambda: native.DepthwiseConv2d(8, 3),
    "computation was replaced": replaced,
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("reason", LEFT)
def test_what_may_be_something_else_is_left_alone_by_name(reason):
    layer = LEFT[reason]()
    kind = type(layer)
    done = native.accelerate(nn.Sequential(layer, nn.Conv2d(8, 8, 3), nn.Conv2d(1, 1, 3)))
    assert type(layer) is kind
    assert [each.name for each in done.layers] == ["0"]
    assert reason in done.layers[0].reason
    assert reason in str(done)


def test_the_report_is_a_table(monkeypatch):
    net = nn.Sequential(
        depthwise(5, stride=2, padding=2), Conv2dSame(8, 8, (3, 1), (2, 1), groups=8), depthwise(channels=24)
    )
    done = native.accelerate(net)
    head, first, second, _, total = str(done).splitlines()
    assert head.split()[:4] == ["layer", "channels", "kernel", "backend,"]
    assert first.split() == ["0", "16", "5×5", "stride", "2", "cpu", "or", "torch,", "timed", "when", "called"]
    assert second.startswith("1      8         3×1 stride 2×1  timm.")
    assert total == "2 of 3 depthwise layers ask the operator."
    net[0](images(1, 16, 9, 9))
    monkeypatch.setattr(layer_choice, "LARGE", 99)
    net[2](images(1, 24, 9, 9))
    assert [line.split()[-1] for line in str(done).splitlines()[1::2]] == ["cpu", "torch"]
    assert str(native.accelerate(net)) == str(done)
    assert "no depthwise layer" in str(native.accelerate(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not str"):
        native.accelerate("convnext_tiny")


def test_copies_and_files_stay_accelerated(calls):
    net, x = nn.Sequential(depthwise(), nn.ReLU()), images(1, 16, 9, 9)
    native.accelerate(net)
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), y)
    assert len(calls) == 3


def test_a_compiled_net_is_compiled_anew():
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    net, x = nn.Sequential(depthwise(), nn.ReLU()), images(2, 16, 9, 9)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    y = compiled(x)
    native.accelerate(compiled)
    torch.testing.assert_close(compiled(x), y)
    assert [torch.ops.replk.depthwise_conv2d.default in graph for graph in graphs] == [False, True]


@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|trace_method|script). is deprecated:FutureWarning")
def test_what_leaves_the_process_holds_torchs_convolution():
    net, x = nn.Sequential(depthwise(), nn.ReLU(), depthwise(3)), images(2, 16, 9, 9)
    y = net(x)
    native.accelerate(net)
    program = torch.export.export(net, (x,))
    assert not any("replk" in str(node.target) for node in program.graph.nodes)
    traced = torch.jit.trace(net, x)
    for each in (program.module(), traced):
        torch.testing.assert_close(each(x), y)
    assert "replk" not in str(traced.inlined_graph)
    with pytest.raises(TypeError, match="TorchScript cannot be rewritten: accelerate the net that it was made of"):
        native.accelerate(traced)
    with pytest.raises(NotImplementedError, match=r"call native\.restore"):
        torch.jit.script(net)
    torch.testing.assert_close(torch.jit.script(native.restore(net))(x), y)


class Checkpointed(nn.Module):
    """A net that is computed again in the backward pass."""

    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


def test_fx_transforms_and_checkpoints():
    net, x = nn.Sequential(depthwise(), nn.ReLU(), depthwise(3)), images(2, 16, 9, 9)
    y, gradients = step(net, x)
    native.accelerate(net)
    graph = torch.fx.symbolic_trace(net)
    assert any(node.op == "call_function" for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), y)
    torch.testing.assert_close(torch.vmap(net)(x[:, None])[:, 0], y)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(net, parameters, (x,)), y)
    for reentrant in (False, True):
        ours = step(Checkpointed(net, reentrant), x)
        torch.testing.assert_close(ours, (y, gradients))


def test_autocast_meta_and_what_torch_refuses(calls):
    layer, x = depthwise(), images(2, 16, 9, 9)
    y = layer(x)
    native.accelerate(layer)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=0.02, atol=0.02)
    calls.clear()
    torch.testing.assert_close(layer(x[0]), y[0])  # unbatched
    assert layer(x[:0]).shape == (0, 16, 9, 9)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == y.shape
    for wrong, words in ((x[:, :15], "to have 16 channels, but got 15"), (x.double(), "same|type")):
        with pytest.raises(RuntimeError, match=words):
            layer(wrong)
    assert calls == []


@torch.no_grad()
def test_an_accelerated_net_deploys(calls):
    torch.manual_seed(0)
    net = nn.Sequential(depthwise(), nn.BatchNorm2d(16)).eval()
    net[1].running_mean.normal_()
    x = images(2, 16, 9, 9)
    y = net(x)
    native.accelerate(net)
    fast = deploy(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(x), y, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_torch_library_modules_hold_layers_too(calls):
    block = ConvNeXtBlock(16)
    native.accelerate(block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block(images(1, 16, 9, 9))
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("kind", ["accelerated", "layer", "line"])
def test_a_padding_mode_that_is_set_afterwards_counts(kind, mode):
    """As those do who want pictures that tile: torch reads it at every call."""
    size = (20,) if kind == "line" else (20, 20)
    stock = (nn.Conv1d if kind == "line" else nn.Conv2d)(8, 8, 13, padding=6, groups=8)
    if kind == "accelerated":
        ours = native.accelerate(stock, inplace=False).model
    else:
        ours = (native.DepthwiseConv1d if kind == "line" else native.DepthwiseConv2d)(8, 13)
        ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 8, *size, requires_grad=True)
    assert torch.allclose(ours(x), stock(x), atol=1e-5)
    ours.padding_mode = stock.padding_mode = mode
    assert torch.equal(ours(x), stock(x))
    assert mode in repr(ours)


def test_a_computation_that_is_replaced_on_the_layer_counts():
    layer = native.DepthwiseConv2d(8, 13)
    layer._conv_forward = lambda x, weight, bias: x
    x = torch.randn(2, 8, 20, 20)
    assert layer(x) is x


def test_layers_that_are_never_timed_are_not_said_to_be(monkeypatch):
    monkeypatch.setattr(layer_choice, "ONEDNN", True)
    net = nn.Sequential(*(nn.Conv2d(8, 8, k, padding=k // 2, groups=8) for k in (3, 7, 13)))
    found = [layer.row()[3] for layer in native.accelerate(net).layers]
    assert found == ["torch", "cpu or torch, timed when it trains", "cpu or torch, timed when called"]


def test_restore_wants_a_module():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        native.restore([1])
