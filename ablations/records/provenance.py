"""What made a record: versions, the device at hand, and the commit of this source tree."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from native.autotune import processor


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("torch", "lightning", "timm", "torchmetrics", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@cache
def hardware(accelerator: str = "auto", devices: int = 1) -> str:
    """One line that names the device at hand, for example `AMD EPYC, 2 threads, AVX512`."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif accelerator == "mps":
        name = f"{processor()}, MPS"
    else:
        name = f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{devices} × {name}" if devices > 1 else name


@cache
def commit() -> str | None:
    """The git commit of this source tree, `+` appended if it has been edited since; None outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ":!/results") else "")
