"""Function transforms, forward-mode derivatives and torch.fx: what looks at a net in another way than to run it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import native
from native import reference

LAYERS = {"small": (3, {}), "large": (7, {}), "named": ((4, 3), {"padding": "same"}), "strided": (5, {"stride": 2})}


@pytest.fixture(autouse=True)
def fixed_plan(monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")


@pytest.fixture(params=LAYERS)
def layer(request):
    kernel, options = LAYERS[request.param]
    torch.manual_seed(0)
    return native.DepthwiseConv2d(4, kernel, **options).double()


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def x(request):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=generator).to(memory_format=request.param)


def test_vmap(layer, x):
    stack = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(torch.vmap(layer)(stack), torch.stack([layer(part) for part in stack]))
    compiled = torch.compile(lambda stack: torch.vmap(lambda x: layer(x))(stack), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(stack), torch.vmap(layer)(stack))


def test_gradients_of_a_function_and_of_each_sample(layer, x):
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    expected = torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()])
    together = torch.func.grad(loss)(parameters, x)
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    for name, right in zip(parameters, expected, strict=True):
        torch.testing.assert_close(together[name], right, check_stride=False)
        torch.testing.assert_close(each[name].sum(0), right, check_stride=False)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's rules are scripted
def test_forward_mode(layer, x):
    tangent = torch.randn_like(x)
    expected = layer(tangent) - layer.bias[:, None, None]
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,))[1], expected)


def test_many_gradients_at_once():
    x, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 6, 6), (2, 1, 5, 5)))
    grads = torch.randn(3, 1, 2, 6, 6, dtype=torch.float64)
    y = native.depthwise_conv2d(x, weight)
    gx, gw = torch.autograd.grad(y, (x, weight), grads, is_grads_batched=True)
    geometry = ((1, 1), (2, 2), (1, 1))
    for i, grad in enumerate(grads):
        torch.testing.assert_close(gx[i], reference.grad_input(grad, weight.detach(), x.shape, *geometry))
        torch.testing.assert_close(gw[i], reference.grad_weight(grad, x.detach(), (5, 5), *geometry))


class Functional(nn.Module):
    """The function in a module of somebody else's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 5, 5, dtype=torch.float64))

    def forward(self, x):
        return native.depthwise_conv2d(x, self.weight, stride=2).relu()


def test_fx_traces_the_module_and_the_function(layer, x):
    for net in (layer, nn.Sequential(layer, nn.ReLU()), Functional()):
        graph = torch.fx.symbolic_trace(net)
        assert any(node.target is native.depthwise_conv2d for node in graph.graph.nodes)
        for same in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            torch.testing.assert_close(same(x), net(x))


def test_fx_still_names_a_wrong_argument(x):
    with pytest.raises(TypeError, match="x must be a tensor, not list"):
        native.depthwise_conv2d([1.0], torch.ones(4, 1, 3, 3))
