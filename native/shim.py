"""``python -m native shim``: files under the names of RepLKNet's CUDA extension that let the operator compute.

Code that asks for ``depthwise_conv2d_implicit_gemm`` (RepLKNet, UniRepLKNet, SLaK and their heirs) runs unmodified once
their folder is on PYTHONPATH, and RepLKNet's own once LARGE_KERNEL_CONV_IMPL names it. Without --write they are printed
only, and nothing is installed.
"""

import argparse
import os
from pathlib import Path

MARK = "Written by `python -m native shim`"
FILES = {
    "depthwise_conv2d_implicit_gemm.py": f'''"""{MARK}: the module of RepLKNet's CUDA extension, by the operator."""

from native.implicit_gemm import (
    DepthWiseConv2dImplicitGEMM,
    _DepthWiseConv2dImplicitGEMMFP16,
    _DepthWiseConv2dImplicitGEMMFP32,
)

__all__ = ["DepthWiseConv2dImplicitGEMM", "_DepthWiseConv2dImplicitGEMMFP16", "_DepthWiseConv2dImplicitGEMMFP32"]
''',
    "_depthwise_conv2d_implicit_gemm_C.py": f'''"""{MARK}: the compiled part of that extension, which copies import."""

from native.implicit_gemm import backward_data, backward_filter, forward

forward_fp16 = forward_fp32 = forward
backward_data_fp16 = backward_data_fp32 = backward_data
backward_filter_fp16 = backward_filter_fp32 = backward_filter
''',
}


def main(arguments: list[str]) -> int:
    """Print the files, or write them; the exit status."""
    parser = argparse.ArgumentParser("python -m native shim", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the files there; it is made if need be")
    options = parser.parse_args(arguments)
    if options.write is None:
        for name, text in FILES.items():
            print(f"# --- {name} ---\n{text}")
        return 0
    folder = options.write.resolve()
    try:
        for path in (folder / name for name in FILES):
            if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
                parser.error(f"{path} is somebody else's file: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        parser.error(f"cannot write into {folder} ({error.strerror}): name another folder")
    windows = os.name == "nt"  # in its command prompt
    path = f"set PYTHONPATH={folder};%PYTHONPATH%" if windows else f'export PYTHONPATH="{folder}:$PYTHONPATH"'
    name = f"set LARGE_KERNEL_CONV_IMPL={folder}" if windows else f'export LARGE_KERNEL_CONV_IMPL="{folder}"'
    print(f"wrote {', '.join(FILES)}\nturn them on:\n  {path}")
    print(f"and, for RepLKNet's own code:\n  {name}")
    return 0
