"""python -m replk_lightning timm SCRIPT …: timm's own scripts, with this package's models.

train.py, validate.py, benchmark.py and inference.py lie in timm's repository, in no wheel, and import nothing but timm.
What follows SCRIPT is theirs; under torchrun it is `torchrun … -m replk_lightning timm train.py …`.
"""

import argparse
import runpy
import sys
from pathlib import Path

from replk_lightning.arguments import OneLineErrors


def main(argv: list[str] | None = None) -> int:
    """Run the script as Python would, with this package's models in timm's registry; no such file gives 2."""
    p = OneLineErrors(prog="python -m replk_lightning timm", description=__doc__)
    p.add_argument("script", type=Path, help="path of the script")
    p.add_argument("flags", nargs=argparse.REMAINDER, help="all that it is given")
    arguments = p.parse_args(argv)
    script = arguments.script
    if not script.is_file():
        p.error(f"there is no script {script}: its address is github.com/huggingface/pytorch-image-models.")
    if script.suffix != ".py":
        p.error(f"{script} is no Python script: name timm's first, as train.py, and its flags after it.")
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[0] = [str(script), *arguments.flags], str(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
    return 0
