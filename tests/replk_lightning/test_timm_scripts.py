"""How timm's scripts, which know no package but timm, see our models."""

import argparse
import subprocess
import sys

import pytest
import timm
import torch
from model_samples import TINY
from timm.layers import apply_test_time_pool, convert_splitbn_model
from timm.models import load_checkpoint, model_parameters, resolve_model_input_args, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad, reparameterize_model

from replk_lightning.timm_scripts import main

SCRIPT = """
import argparse, sys
import timm
from timm.models import create_model
from timm.utils import ParseKwargs
from beside import CLASSES
parser = argparse.ArgumentParser()
parser.add_argument("data", nargs="?")
parser.add_argument("--model", "-m")
parser.add_argument("--num-classes", type=int, default=None)
parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
args = parser.parse_args()
model = create_model(args.model, num_classes=args.num_classes, in_chans=3, scriptable=False, checkpoint_path="",
                     drop_rate=0.0, drop_path_rate=None, global_pool=None, pretrained=False, **args.model_kwargs)
print(__name__, args.data, type(model).__name__, model.num_classes, model.pretrained_cfg["input_size"], sys.argv[0])
sys.exit(CLASSES)
"""
FLAGS = ["pictures", "--model", "mobilenetv2_lk", "--num-classes", "7", "--model-kwargs", "width=0.1", "kernel_size=13"]


def test_a_script_of_timms_finds_our_models_and_its_own_flags(tmp_path):
    script = tmp_path / "validate.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("CLASSES = 5")  # scripts find modules beside them
    command = [sys.executable, "-m", "replk_lightning", "timm", str(script), *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"__main__ pictures MobileNetV2 7 (3, 224, 224) {script}"
    assert done.returncode == 5


def test_arguments_and_path_are_as_before_afterwards(tmp_path, capsys):
    (tmp_path / "train.py").write_text("import sys; print(sys.argv[1:], sys.path[0])")
    before = sys.argv, list(sys.path)
    assert main([str(tmp_path / "train.py"), "--help", "-b", "2"]) == 0
    assert capsys.readouterr().out.strip() == f"['--help', '-b', '2'] {tmp_path}"
    assert (sys.argv, sys.path) == before


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere.py"], "no script nowhere.py"),
        ([], "required: script"),
        (["last.pth.tar"], "last.pth.tar is no Python script"),
    ],
)
def test_no_script_gets_one_sentence_and_2(capsys, argv, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pth.tar").write_text("a checkpoint")
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


NETS = {"replknet_31b": {key: TINY[key] for key in ("dims", "depths")}, "mobilenetv2_lk": {"width": 0.1}}


def optimizer(net):
    return create_optimizer_v2(net, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)


@pytest.fixture(params=NETS)
def trained(request, tmp_path):
    """Name, options and average of a net after one step as train.py makes it, and what its saver wrote."""
    name, options = request.param, NETS[request.param]
    net = timm.create_model(
        name, pretrained=False, num_classes=3, in_chans=3, drop_rate=0.1, drop_path_rate=0.1, drop_block_rate=None,
        global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="", **options,
    )  # fmt: skip
    with torch.no_grad():  # --head-init-scale and --head-init-bias
        net.get_classifier().weight.mul_(0.5)
        net.get_classifier().bias.fill_(-1.0)
    net.set_grad_checkpointing(enable=True)
    own, average = optimizer(net), ModelEmaV3(net, decay=0.9)
    net(torch.randn(4, 3, 64, 64)).square().mean().backward()
    dispatch_clip_grad(model_parameters(net, exclude_head=True), value=0.02, mode="agc")
    own.step()
    average.update(net)
    arguments = argparse.Namespace(model=name, num_classes=3, model_kwargs=options)
    folder = str(tmp_path)
    saver = CheckpointSaver(net, own, arguments, average, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(0, metric=1.0)
    return name, options, average.module, tmp_path / "last.pth.tar"


def test_train_resumes_and_validate_reads_the_average_merges_and_evaluates(trained):
    name, options, average, path = trained
    net = timm.create_model(name, num_classes=3, **options)
    assert resume_checkpoint(net, str(path), optimizer=optimizer(net)) == 1
    asked = {"in_chans": None, "input_size": (3, 64, 64), "img_size": None}
    net = timm.create_model(**resolve_model_input_args(name, asked, num_classes=3, global_pool=None, **options))
    load_checkpoint(net, str(path), use_ema=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), average.state_dict().values(), strict=True))
    x = torch.randn(2, 3, 64, 64)
    outputs = average.eval()(x)
    merged = reparameterize_model(net).eval()
    pooled, _ = apply_test_time_pool(merged, timm.data.resolve_data_config(asked, model=merged))
    with torch.inference_mode():
        assert torch.allclose(pooled.to(memory_format=torch.channels_last)(x), outputs, rtol=1e-4, atol=1e-5)
        assert pooled.to(torch.bfloat16)(x.bfloat16()).isfinite().all()
    with (
        pytest.warns(FutureWarning, match="script` is deprecated"),
        pytest.raises(NotImplementedError, match="TorchScript does not compile our operator"),
    ):
        torch.jit.script(net.float())


def test_benchmark_and_inference_build_nets_their_way(trained):
    name, options, average, path = trained
    quick = timm.create_model(name, num_classes=None, in_chans=3, global_pool="fast", drop_path_rate=None, **options)
    assert quick(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert convert_splitbn_model(quick, 2)(torch.randn(4, 3, 64, 64)).shape == (4, 1000)
    net = timm.create_model(name, num_classes=3, in_chans=3, checkpoint_path=str(path), **options)
    net.reset_classifier(0)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, average.num_features)
