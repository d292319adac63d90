"""How timm's scripts, which know no package but timm, see our models."""

import subprocess
import sys

WRAPPER = "import replk_lightning, runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"


def test_a_script_run_after_our_import_finds_our_models_and_its_own_flags(tmp_path):
    # train.py needs no wrapper: it imports what --device-modules names before it makes the model
    script = tmp_path / "validate.py"
    script.write_text("import sys, timm; print(__name__, sys.argv[1:], 'replknet_3' in timm.list_models())")
    command = [sys.executable, "-c", WRAPPER, script, "--model", "replknet_3"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "__main__ ['--model', 'replknet_3'] True"
