"""``python -m native bench``: the operator beside torch's own convolution in both layouts, in one process, interleaved.

Shapes: the grid of Table 1 (its batch of 64 cut down, as printed) and the four stages of RepLKNet-31 at 224 × 224.
Writes a table and a plot of latency over kernel size. Every number is a median; with one thread it is CPU time, which
other processes disturb least, with more, and on Windows, it is wall time.
"""

import argparse
import csv
import ctypes
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from native import autotune, bench_gpu, cache, depthwise_conv2d
from native.layers import BATCHES, KERNELS, STAGES, taps_on_pixels
from native.timing import interleaved

WAYS = ("ours", "channels_last", "nchw")
PASSES = ("forward", "forward+backward")
_randn = partial(torch.randn, dtype=torch.float32, device="cpu")  # whatever the process's defaults are


@dataclass(frozen=True)
class Shape:
    """A depthwise layer of stride 1 that keeps the map's size."""

    where: str  # "table 1" or "stage 1" … "stage 4"
    batch: int
    channels: int
    size: int
    kernel: int

    def useful_flops(self) -> int:
        """Two for each multiply-add on a pixel inside the map; those on the padding do nothing."""
        return 2 * self.batch * self.channels * taps_on_pixels(self.size, self.kernel) ** 2

    def bytes(self) -> int:
        """Of x, y and the weight in float32."""
        return 4 * self.channels * (2 * self.batch * self.size**2 + self.kernel**2)


def shapes(kernels: Iterable[int], batch: int) -> list[Shape]:
    """Table 1's grid for these kernels, then RepLKNet-31's stages at this batch."""
    grid = [Shape("table 1", n, 384, size, kernel) for size, n in BATCHES.items() for kernel in kernels]
    return grid + [Shape(f"stage {i}", batch, c, size, k) for i, (size, c, k) in enumerate(STAGES, 1)]


# --- timing ----------------------------------------------------------------------------------------------------------


def sgemm_flops() -> float:
    """The machine's rate in dense float32 matrix products: the yardstick of a compute-bound kernel."""
    a = _randn(1024, 1024)
    return 2 * 1024**3 / interleaved({"sgemm": lambda: a @ a}, 0.5)["sgemm"]


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Resident bytes that `call` needs at its peak beyond those before; None where Linux's /proc is missing."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls have freed
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        call()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


# --- measuring -------------------------------------------------------------------------------------------------------


def _calls(shape: Shape, backward: bool) -> dict[str, Callable[[], object]]:
    """The three ways on the same numbers, each in its own layout."""
    generator = torch.Generator().manual_seed(0)
    n, c, r, k = shape.batch, shape.channels, shape.size, shape.kernel
    x, grad = (_randn(n, c, r, r, generator=generator) for _ in range(2))
    weight = _randn(c, 1, k, k, generator=generator)

    def call(way: str) -> Callable[[], object]:
        layout = torch.contiguous_format if way == "nchw" else torch.channels_last
        here, dy = (t.clone(memory_format=layout) for t in (x, grad))
        w = weight.clone()

        def forward() -> Tensor:
            return depthwise_conv2d(here, w) if way == "ours" else F.conv2d(here, w, padding=k // 2, groups=c)

        def both() -> object:
            here.requires_grad_(), w.requires_grad_()
            return torch.autograd.grad(forward(), (here, w), dy)

        return both if backward else forward

    return {way: call(way) for way in WAYS}


def measure(shape: Shape, backward: bool, budget: float, sgemm: float) -> dict[str, object]:
    """One row of the table."""
    calls = _calls(shape, backward)
    calls["ours"]()  # decides the plan
    extra = peak_bytes(calls["ours"]) if backward else None
    seconds = interleaved(calls, budget)
    flops = shape.useful_flops() * (3 if backward else 1)
    row: dict[str, object] = {**vars(shape), "pass": PASSES[backward]}
    row |= {f"{way} ms": round(1e3 * seconds[way], 3) for way in WAYS}
    row |= {f"× {way}": round(seconds[way] / seconds["ours"], 2) for way in WAYS[1:]}
    row["useful GFLOP/s"] = round(flops / seconds["ours"] / 1e9, 1)
    row["of sgemm"] = round(flops / seconds["ours"] / sgemm, 2)
    row["peak bytes / (x + y + w)"] = "" if extra is None else round(extra / shape.bytes(), 1)
    return row


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Geometric means over K ≥ 7, and the worst shape beside the faster stock layout."""
    lines = []
    for name in PASSES:
        chosen = [row for row in rows if row["pass"] == name and row["kernel"] >= 7]
        if not chosen:
            continue
        means = {way: math.exp(statistics.fmean(math.log(row[f"× {way}"]) for row in chosen)) for way in WAYS[1:]}
        lines.append(f"{name}, K ≥ 7, geometric mean: " + ", ".join(f"{m:.1f}× {way}" for way, m in means.items()))
    for name in PASSES:
        worst = min((min(r[f"× {w}"] for w in WAYS[1:]), r["size"], r["kernel"]) for r in rows if r["pass"] == name)
        lines.append(
            f"{name}, least: {worst[0]:.2f}× the faster stock layout, at {worst[1]}×{worst[1]}, K = {worst[2]}"
        )
    return lines


# --- output ----------------------------------------------------------------------------------------------------------


def stem() -> str:
    """Names the machine and the versions: how the files of a bench are called."""
    try:
        generator = f" llvmlite {metadata.version('llvmlite')}"
    except metadata.PackageNotFoundError:
        generator = ""
    torch_version = torch.__version__.split("+")[0]
    return cache.slug(f"{autotune.cpu_name()} torch {torch_version}{generator} {torch.get_num_threads()} threads")


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The rows as CSV, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency over kernel size, one panel a resolution of Table 1."""
    from matplotlib.figure import Figure

    grid = [row for row in rows if row["where"] == "table 1"]
    sizes = sorted({row["size"] for row in grid})
    figure = Figure(figsize=(4 * len(sizes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        here = [row for row in grid if row["size"] == size]
        for way, colour in zip(WAYS, ("C3", "C0", "C7"), strict=True):
            for name, dashes in zip(PASSES, ("--", "-"), strict=True):
                line = sorted((row["kernel"], row[f"{way} ms"]) for row in here if row["pass"] == name)
                label = f"{way}, {name}" if panel is panels[0] else None
                panel.plot(*zip(*line, strict=True), dashes, color=colour, marker=".", label=label)
        panel.set(yscale="log", xlabel="kernel size", title=f"({here[0]['batch']}, 384, {size}, {size})")
    panels[0].set_ylabel("latency (ms)")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    """Run the bench; the exit status."""
    device = argparse.ArgumentParser("python -m native bench", add_help=False)
    device.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="--device cuda --help shows its flags")
    chosen, arguments = device.parse_known_args(arguments)
    if chosen.device == "cuda":
        return bench_gpu.main(arguments)
    description = __doc__.splitlines()[0].split(": ", 1)[1]
    parser = argparse.ArgumentParser("python -m native bench", description=description, parents=[device])
    parser.add_argument("--kernels", type=int, nargs="+", default=KERNELS, metavar="K", help="columns of Table 1")
    parser.add_argument("--batch", type=int, default=4, help="batch of RepLKNet-31's stages (default 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on a shape and pass, at least one round")
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    options = parser.parse_args(arguments)
    if min(options.threads, options.batch) < 1 or not all(k > 0 and k % 2 for k in options.kernels):
        parser.error("--threads and --batch are 1 or more, and --kernels odd")
    torch.set_num_threads(options.threads)
    sgemm = sgemm_flops()
    print(
        f"{autotune.cpu_name()}, torch {torch.__version__}, {options.threads} threads, sgemm {sgemm / 1e9:.0f} GFLOP/s"
    )
    rows = []
    for shape in shapes(options.kernels, options.batch):
        for backward in (False, True):
            rows.append(measure(shape, backward, options.seconds, sgemm))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(*summary(rows), sep="\n")
    folder = options.results / "native"
    write_table(rows, folder / f"{stem()}.csv")
    plot(rows, folder / f"{stem()}.png")
    print(f"wrote {folder / stem()}.csv and .png")
    return 0
