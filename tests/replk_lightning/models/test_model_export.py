"""Whole networks leave torch: compiled as one graph, exported, and run by onnxruntime."""

import pytest
import timm
import torch
from model_samples import TINY, randomise, relative

from replk_lightning import deploy


@pytest.fixture(params=[False, True], ids=["as trained", "deployed"])
def net(request):
    net = randomise(timm.create_model("replknet_31b", **TINY)).eval()
    return deploy(net) if request.param else net


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_replknet_compiles_as_one_graph(net):
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert relative(compiled(IMAGES), net(IMAGES)) < 1e-5


def test_onnxruntime_runs_a_whole_replknet(net, tmp_path):
    pytest.importorskip("onnxscript", reason="the ONNX exporter is a development dependency")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a development dependency")
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (IMAGES,), dynamo=True, verbose=False).save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    with torch.no_grad():
        assert relative(torch.from_numpy(logits), net(IMAGES)) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripting_is_refused_in_a_sentence(net):
    with pytest.raises(NotImplementedError, match=r"TorchScript does not compile .*: use torch\.export"):
        torch.jit.script(torch.nn.Sequential(net))
