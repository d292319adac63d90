"""``python -m native bench --device cuda``: the CUDA kernels beside torch on Table 1's grid.

A time is the median over rounds of a CUDA graph of several calls on different inputs, so that neither launch gaps nor a
warm cache flatter it; ours and torch's rounds alternate. Rows go to ``results/native/<gpu>-<versions>.csv``.
"""

import argparse
import csv
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from native import aten, gpu
from native.accuracy import NUMBERS, relative_error, round_to_tf32, tf32_allowed
from native.layers import BATCHES, KERNELS, STAGES, taps_on_pixels
from native.timing import interleaved_on_gpu

GRID = (*((size, 384, kernel) for size in BATCHES for kernel in KERNELS), *STAGES)  # (size, channels, kernel)
FUNCTIONS = ("forward", "grad_input", "grad_weight")
FIELDS = ("function", "dtype", "batch", "channels", "size", "kernel", "ours_ms", "torch_ms", "torch_channels_last_ms",
          "copy_ms", "useful_gflop", "speedup", "error", "torch_error")  # fmt: skip


def useful_gflop(batch: int, channels: int, size: int, kernel: int) -> float:
    """Twice the multiply-adds on real pixels, the padding's not counted."""
    return 2e-9 * batch * channels * taps_on_pixels(size, kernel) ** 2


def _call(module: ModuleType, function: str, x: Tensor, w: Tensor, g: Tensor, padding: int) -> Tensor:
    geometry = ((1, 1), (padding, padding), (1, 1))
    given: dict[str, tuple[Any, ...]] = {
        "forward": (x, w, None),
        "grad_input": (g, w, tuple(x.shape)),
        "grad_weight": (g, x, tuple(w.shape[2:])),
    }
    result: Tensor = getattr(module, function)(*given[function], *geometry)
    return result


def bench(
    function: str, dtype: str, batch: int, channels: int, size: int, kernel: int, rounds: int
) -> dict[str, object]:
    """One row of the table; copy_ms, reading and writing a tensor of x's size, is the memory's floor for forward."""
    kind, p = NUMBERS[dtype], kernel // 2
    copies = max(2, min(8, 2**28 // (batch * channels * size * size * kind.itemsize)))
    randn = partial(torch.randn, dtype=torch.float32, device="cuda")
    xs, gs = ([randn(batch, channels, size, size).to(kind) for _ in range(copies)] for _ in "xg")
    w = (randn(channels, 1, kernel, kernel) / kernel).to(kind)
    pairs = list(zip(xs, gs, strict=True))
    contestants: dict[str, list[Callable[[], object]]] = {
        "ours": [partial(_call, gpu, function, x, w, g, p) for x, g in pairs],
        "torch": [partial(_call, aten, function, x, w, g, p) for x, g in pairs],
        "copy": [x.clone for x in xs],
    }
    if function == "forward":
        last = [x.contiguous(memory_format=torch.channels_last) for x in xs]
        contestants["torch_channels_last"] = [partial(_call, aten, function, x, w, x, p) for x in last]
    with tf32_allowed(dtype == "tf32"):
        ms = interleaved_on_gpu(contestants, rounds)
    x, g, some = xs[0][:, :4].contiguous(), gs[0][:, :4].contiguous(), w[:4]
    exact = _call(aten, function, x.double(), some.double(), g.double(), p)
    with tf32_allowed(dtype == "tf32"):
        ours = _call(gpu, function, x, some, g, p)
    if dtype == "tf32":  # torch has no such convolution: as `native.accuracy` defines its error
        x, some, g = map(round_to_tf32, (x, some, g))
    errors = [relative_error(result, exact) for result in (ours, _call(aten, function, x, some, g, p))]
    values = (
        function, dtype, batch, channels, size, kernel, *(f"{ms[k]:.4f}" for k in ("ours", "torch")),
        f"{ms['torch_channels_last']:.4f}" if function == "forward" else "", f"{ms['copy']:.4f}",
        f"{useful_gflop(batch, channels, size, kernel):.3f}", f"{ms['torch'] / ms['ours']:.2f}",
        *(f"{e:.2e}" for e in errors),
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def main(argv: list[str]) -> int:
    """Time the grid and write the table; 0 if no error is more than twice torch's."""
    parser = argparse.ArgumentParser(prog="python -m native bench --device cuda", description=__doc__)
    parser.add_argument("--functions", nargs="+", default=FUNCTIONS, choices=FUNCTIONS)
    parser.add_argument("--dtypes", nargs="+", default=[*NUMBERS], choices=[*NUMBERS])
    parser.add_argument("--kernels", nargs="+", type=int, default=KERNELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    options = parser.parse_args(argv)
    if why := gpu.why_not():
        print(why)
        return 1
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    versions = f"torch{torch.__version__.split('+')[0]}-cuda{torch.version.cuda}-cudnn{torch.backends.cudnn.version()}"
    path = options.results / "native" / f"{name}-{versions}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = [shape for shape in GRID if shape[2] in options.kernels]
    wrong = 0
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for function, dtype, shape in itertools.product(options.functions, options.dtypes, grid):
            size, channels, kernel = shape
            row = bench(function, dtype, options.batch, channels, size, kernel, options.rounds)
            table.writerow(row)
            file.flush()
            wrong += not float(str(row["error"])) <= 2 * float(str(row["torch_error"])) + 1e-7
            print(*row.values(), flush=True)
    return int(wrong > 0)
