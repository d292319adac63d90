"""How timm's scripts, which know no package but timm, see our models."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(("argv", "sentence"), [(["nowhere.py"], "no script nowhere.py"), ([], "required: script")])
def test_no_script_gets_one_sentence_and_2(capsys, argv, sentence):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
