"""torch.compile keeps the op; what leaves the process holds the convolution that other runtimes know."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import native


class Net(nn.Module):
    """Two depthwise layers behind a pointwise one."""

    def __init__(self):
        super().__init__()
        self.point = nn.Conv2d(3, 8, 1)
        self.large = native.DepthwiseConv2d(8, 7)
        self.strided = native.DepthwiseConv2d(8, (3, 5), stride=2, dilation=(1, 2), bias=False)

    def forward(self, x):
        return self.strided(self.large(self.point(x)).relu())


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_with_its_gradients(net, x, dynamic):
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=dynamic)
    expected, result = net(x), compiled(x)
    assert [graph.count(torch.ops.replk.depthwise_conv2d.default) for graph in graphs] == [2]
    torch.testing.assert_close(result, expected)
    parameters = list(net.parameters())
    for ours, exact in zip(
        torch.autograd.grad(result.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_a_dynamic_batch(net, x, strict):
    program = torch.export.export(net, (x,), strict=strict, dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("replk" in target for target in targets)
    torch.testing.assert_close(program.module()(x[:1]), net(x[:1]))


LOAD = """
import sys, torch
sys.modules["native"] = None
net, x, y = (torch.jit.load(sys.argv[1]), *torch.load(sys.argv[2]))
torch.testing.assert_close(net(x), y)
"""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|trace_method). is deprecated:FutureWarning")
def test_a_traced_file_loads_without_this_package(net, x, tmp_path):
    net = nn.Sequential(net, native.DepthwiseConv2d(8, (4, 3), padding="same"))
    torch.jit.trace(net, x).save(tmp_path / "net.pt")
    torch.save((x, net(x).detach()), tmp_path / "tensors.pt")
    command = [sys.executable, "-c", LOAD, tmp_path / "net.pt", tmp_path / "tensors.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnxruntime_agrees(net, x, tmp_path, dynamo):
    pytest.importorskip("onnxscript", reason="the ONNX exporter is a development dependency")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a development dependency")
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        if not dynamo:  # torch's older exporter warns of itself
            warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(net.eval(), (x,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), net(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripting_any_net_with_the_layer_is_refused_in_a_sentence(net):
    for each in (net, net.large):
        with pytest.raises(NotImplementedError, match=r"TorchScript does not compile .*: use torch\.export"):
            torch.jit.script(each)
