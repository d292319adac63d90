"""export as a command: files that run at other batches and sizes give what torch gives, or it is said what is fixed."""

import json
import sys
import warnings

import pytest
import timm
import torch
from model_samples import TINY, randomise
from torch import nn

from native.accuracy import relative_error
from native.copying import copied
from replk_lightning import export as exporting
from replk_lightning.commands.export import main
from replk_lightning.export import ExportError, export
from replk_lightning.nets import open_net
from replk_lightning.tasks.base import CLASS_NAMES
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.segment import SegmentTask

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")
onnx = pytest.importorskip("onnx", reason="what writes ONNX is a development dependency")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is a development dependency")

SEGMENT = {"channels": 16, "auxiliary_channels": 8, "crop": (64, 64)}


def runner(path):
    """A function of pictures out of the file, and what the file says of itself."""
    if path.suffix == ".pt":
        extra = {"about": ""}
        return torch.jit.load(path, _extra_files=extra), json.loads(extra["about"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
    assert session.get_inputs()[0].shape[1:2] == [3]
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), about


def weights_of(name, folder, **options):
    torch.manual_seed(0)
    net = randomise(timm.create_model(name, **options)).eval()
    torch.save(net.state_dict(), folder / f"{name}.pth")
    return net, f"{name}@{folder / f'{name}.pth'}"


TIMMS = ("resnet18", "convnext_atto", "mobilenetv3_small_050", "repvgg_a0")


@pytest.mark.parametrize("kind", [".onnx", ".pt"])
@pytest.mark.parametrize(
    "name",
    ["test_convnext", "mobilenetv2_lk", *(pytest.param(name, marks=pytest.mark.slow) for name in TIMMS)],
)
def test_a_file_gives_torchs_output_at_other_batches_and_sizes(tmp_path, capsys, name, kind):
    net, spec = weights_of(name, tmp_path)
    path = tmp_path / "new" / f"net{kind}"
    assert main(["--model", spec, "--out", str(path), "--size", "64"]) == 0
    said = capsys.readouterr().out
    assert "free: batch, height, width\n" in said
    assert "form: deployed" in said
    run, about = runner(path)
    assert about["model"] == name
    assert about["preprocessing"]["mean"] == list(open_net(spec).preprocessing.mean)
    for shape in ((1, 3, 64, 64), (4, 3, 96, 65), (1, 3, 70, 128)):
        images = torch.randn(shape)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact, found, ours = copied(net).double()(images.double()), net(images), run(images)
        assert relative_error(ours, exact) <= 2 * relative_error(found, exact) + 4 * 2.0**-24
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]  # nothing is left beside


@pytest.mark.parametrize("kind", [".onnx", ".pt"])
def test_a_net_of_one_size_leaves_the_batch_free_and_says_why(tmp_path, capsys, kind):
    path = tmp_path / f"net{kind}"
    assert main(["--model", "test_vit3", "--random", "--out", str(path), "--as-trained"]) == 0
    said = capsys.readouterr().out
    assert "free: batch (no more: " in said
    assert "form: as trained" in said
    images = torch.randn(5, 3, 160, 160)
    run, _ = runner(path)
    net = open_net("test_vit3", pretrained=False).net
    with torch.no_grad():
        assert relative_error(run(images), net(images)) < 1e-4


def test_a_replknet_is_written_merged_and_large_kernels_stay(tmp_path):
    net = randomise(timm.create_model("replknet_31b", **TINY)).eval()
    from replk_lightning import deploy

    done = export(net, tmp_path / "net.onnx", (64, 64), form=deploy(net))
    assert done.free == ("batch", "height", "width")
    weights = {tuple(each.dims) for each in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert (8, 1, 31, 31) in weights
    assert all(each.holds for each in done.compared)


@pytest.mark.parametrize(
    ("kind", "head"), [(".onnx", "deeplabv3plus_cityscapes_80k"), (".pt", "upernet_cityscapes_80k")]
)
def test_a_segmenter_gives_its_logits_alone(tmp_path, capsys, kind, head):
    torch.manual_seed(0)
    model, options = ("mobilenetv2_lk", {"width": 0.1}) if "deeplab" in head else ("test_resnet", {})
    task = SegmentTask(model, head, 4, recipe_overrides={**SEGMENT, "drop_path": 0.0}, model_options=options)
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), CLASS_NAMES: list("abcd")}
    torch.save(content, tmp_path / "last.ckpt")
    path = tmp_path / f"net{kind}"
    assert main(["--model", str(tmp_path / "last.ckpt"), "--out", str(path)]) == 0
    assert "free: batch" in capsys.readouterr().out
    run, about = runner(path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(run(images), task.eval().model(images).main) < 1e-4
    assert about["classes"] == list("abcd")


class Sizes(nn.Module):
    """Forgets that its pictures may have another size: the exporter sees a constant."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images):
        height = int(torch.tensor(images.shape[2]))
        return self.layer(images).mean((2, 3)) / height


def test_a_trace_that_keeps_a_size_as_a_constant_is_found_out(tmp_path):
    done = export(Sizes().eval(), tmp_path / "net.pt", (32, 32))
    assert done.free == ("batch",)
    assert "for pictures 1×3×45×39 the file is off by" in done.why_not or "for pictures 2×3×64×96" in done.why_not


class Pools(nn.Module):
    """Adaptive pooling to several bins, which ONNX lacks: exporters write windows of one fixed size instead."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(3))

    def forward(self, images):
        return self.layers(images)


def test_adaptive_pooling_that_onnx_gets_wrong_at_other_sizes_is_found_out(tmp_path):
    done = export(Pools().eval(), tmp_path / "net.onnx", (33, 33))
    assert done.free == ("batch",)
    assert done.why_not
    (images,) = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"]).get_inputs()
    assert images.shape == ["batch", 3, 33, 33]


def test_a_file_that_computes_something_else_does_not_stay(tmp_path):
    net, other = (timm.create_model("test_resnet").eval() for _ in range(2))
    (tmp_path / "net.pt").write_text("old")
    with pytest.raises(ExportError, match=r"cannot be exported: for pictures .* the file is off by"):
        export(net, tmp_path / "net.pt", (32, 32), form=other)
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt"]
    assert (tmp_path / "net.pt").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "net.pb"], "net.pb is neither ONNX nor TorchScript"),
        (["--out", "/proc/net.pt"], "/proc/net.pt cannot be written"),
        (["--out", "net.pt", "--model", "nonesuch"], "no model 'nonesuch'"),
        (["--out", "net.pt", "--model", "test_vit3", "--size", "100"], "the net fails on pictures of 100×100 pixels"),
        (["--out", "net.pt", "--model", "mixer_s32_224"], "the net gives nothing but zeros"),
        (["--out", "net.pt", "--model", "detector.ckpt"], "detector.ckpt is a detector"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_2(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    overrides = {"channels": 16, "drop_path": 0.0, "head_convs": 1}
    random = [] if "detector.ckpt" in arguments else ["--random"]
    if not random:
        task = DetectTask("mobilenetv2_lk", "fcos_2x", 3, model_options={"width": 0.1}, recipe_overrides=overrides)
        torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, "detector.ckpt")
    model = [] if "--model" in arguments else ["--model", "test_resnet"]
    assert main([*model, *random, *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1
    assert sentence in said[0]


def test_what_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "NEEDED", ("onnx", "onnx_that_is_not_there"))
    assert main(["--model", "test_resnet", "--random", "--out", str(tmp_path / "net.onnx")]) == 2
    error = capsys.readouterr().err
    assert error == 'export: onnx_that_is_not_there not installed: pip install "replk-lightning[onnx]".\n'
    assert "onnx_that_is_not_there" not in sys.modules
