"""``python -m native plan``: what `native.autotune` keeps for this CPU; times it again, and replaces what was spoilt.

Without flags it lists: shape class, way, and its time over that of the first listed, torch's own. ``--check`` measures
each again, elsewhere, and names what would be chosen otherwise by more than noise; ``--remeasure`` replaces that. A
training that is continued keeps the ways of its checkpoint all the same.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from native import autotune, cache, depthwise_conv2d, layer_choice
from native.autotune import Kept
from native.geometry import Pair, output_size

CLASS = re.compile(
    r"(?P<function>.+) torch\.(?P<dtype>\w+) (?P<layout>nchw|channels_last) n(?P<n>\d+) c(?P<c>\d+)(?P<odd>\+?) "
    r"map (?P<h>\d+)x(?P<w>\d+) kernel \((?P<kernel>.+)\) stride \((?P<stride>.+)\) padding \((?P<padding>.+)\) "
    r"dilation \((?P<dilation>.+)\)"
)


def folders() -> dict[int, Path]:
    """Where choices of this CPU and torch are kept, by thread count."""
    named = re.compile(re.escape(autotune.environment()) + r"-(\d+)-threads")
    root = cache.folder_if_any("cpu")
    found = [(named.fullmatch(path.name), path) for path in root.iterdir()] if root and root.is_dir() else []
    return {int(match[1]): path for match, path in sorted(found, key=lambda f: f[1]) if match}


def choices_in(folder: Path) -> dict[Path, Kept]:
    """By their files, in the order of their classes."""
    kept = {path: choice for path in folder.glob("*.json") if (choice := Kept.read(path))}
    return dict(sorted(kept.items(), key=lambda item: item[1].shape_class))


def described(kept: Kept) -> str:
    """A line of the list."""
    first, own = next(iter(kept.milliseconds.values()), None), kept.milliseconds.get(kept.choice)
    rate = f"{own:.3f} ms, {first / own:.2f}× the first" if first and own else "not timed"
    return f"{kept.shape_class}: {kept.choice} ({rate}{', measured on a busy machine' if kept.busy else ''})"


def compute(shape_class: str) -> None:
    """Compute something of this class, so that its way is chosen; raises ValueError for a class of another version."""
    match = CLASS.fullmatch(shape_class)
    if match is None:
        raise ValueError(shape_class)
    n, c, h, w = (int(match[name]) for name in "nchw")
    c -= 4 if match["odd"] and c % 16 == 0 else 0
    kernel, stride, padding, dilation = (_pair(match[name]) for name in ("kernel", "stride", "padding", "dilation"))
    layout = torch.channels_last if match["layout"] == "channels_last" else torch.contiguous_format
    kind: dict[str, Any] = {"dtype": getattr(torch, match["dtype"])}
    x = torch.randn(n, c, h, w, **kind).contiguous(memory_format=layout)
    weight = torch.randn(c, 1, *kernel, **kind)
    if match["function"].startswith("layer"):
        wanted = match["function"].split()[1:]
        layer = nn.Conv2d(c, c, kernel, stride, padding, dilation, c, bias=False, **kind)
        x.requires_grad_("dx" in wanted), layer.weight.requires_grad_("dw" in wanted)
        layer_choice.operator_wins(layer, x, layer.weight, None)
        return
    grad = torch.randn(n, c, *output_size((h, w), kernel, stride, padding, dilation), **kind)
    grad = grad.contiguous(memory_format=layout)
    x.requires_grad_(match["function"] == "grad_input"), weight.requires_grad_(match["function"] == "grad_weight")
    y = depthwise_conv2d(x, weight, None, stride=stride, padding=padding, dilation=dilation, backend="cpu")
    if y.requires_grad:
        y.backward(grad)


def _pair(text: str) -> Pair:
    first, second = map(int, text.split(","))
    return first, second


def measured_again(shape_class: str) -> Kept | None:
    """The same class measured now, kept in a folder of its own; None for a class of another version."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_CACHE_HOME"] = home
        autotune.forget()
        try:
            compute(shape_class)
            found = [kept for path in Path(home).rglob("*.json") if (kept := Kept.read(path))]
        except ValueError:
            return None
        finally:
            autotune.forget()
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before
    return next((kept for kept in found if kept.shape_class == shape_class), None)


def main(arguments: list[str]) -> int:
    """Print what is kept; 1 if some of it would be chosen otherwise and stays."""
    parser = argparse.ArgumentParser("python -m native plan", description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure again what is kept, and change nothing")
    parser.add_argument("--remeasure", action="store_true", help="measure again, and replace what was spoilt")
    parser.add_argument("--only", default="", metavar="TEXT", help="shape classes that hold this text")
    options = parser.parse_args(arguments)
    stale = 0
    for threads, folder in folders().items():
        print(f"{autotune.cpu_name()}, {threads} threads, {folder}")
        torch.set_num_threads(threads)
        for path, kept in choices_in(folder).items():
            if options.only not in kept.shape_class:
                continue
            print(f"  {described(kept)}", flush=True)
            if options.check or options.remeasure:
                stale += _compare(path, kept, options.remeasure)
    if not folders():
        nobody = "without a home directory: set XDG_CACHE_HOME" if cache.folder_if_any() is None else "yet"
        print(f"nothing is kept for {autotune.cpu_name()} {nobody}; the first call of a shape measures.")
    return int(stale > 0)


def _compare(path: Path, kept: Kept, replace: bool) -> bool:
    """Say what a new measurement finds; whether another way is clearly faster and the old choice stays."""
    new = measured_again(kept.shape_class)
    if new is None or new.busy:
        print(f"    cannot be said: {'the machine is busy' if new else 'the class is of another version'}")
        return False
    old = new.milliseconds.get(kept.choice)
    spoilt = new.choice != kept.choice and not (old and new.milliseconds[new.choice] > autotune.MARGIN * old)
    if spoilt:
        print(f"    {'replaced by' if replace else 'now'} {new.choice} ({new.milliseconds[new.choice]:.3f} ms)")
    if replace and (spoilt or kept.busy):
        renewed = new if spoilt else new._replace(choice=kept.choice)
        with cache.beside(path) as own:
            own.write_text(renewed.text, encoding="utf-8")
            own.replace(path)
    return spoilt and not replace
