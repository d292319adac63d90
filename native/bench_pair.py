"""``python -m native bench --pair``: a re-parameterized layer's two filters by one kernel and by two, on a GPU.

The forward of RepLKNet-31's four stages in training (Guideline 3), in both layouts, with `native.gpu`'s kernels alone.
A time is the median over rounds of a CUDA graph of several calls on different inputs; all ways' rounds alternate. Rows
go to ``results/native/<gpu>-<versions>-pair.csv``, each as it is measured, with a digest of the code; the same command
goes on with what is there. Where no kernel computes both filters at a time, its column is empty.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from native import gpu, layout
from native.accuracy import NUMBERS, tf32_allowed
from native.aten import two_calls
from native.bench_gpu import stem
from native.geometry import Shape
from native.layers import STAGES
from native.rows import Rows, code
from native.timing import interleaved_on_gpu

KEY = ("dtype", "batch", "channels", "size", "kernel", "small", "code")
WAYS = ("one_ms", "two_ms", "one_channels_last_ms", "two_channels_last_ms")
FIELDS = (*KEY, *WAYS)
COPIES = 4  # inputs of a graph


def bench(dtype: str, shape: Shape, kernel: int, small: int, rounds: int, device: str = "cuda") -> dict[str, str]:
    """Milliseconds of each of WAYS for x of `shape` (N, C, H, W); empty for one that no kernel takes."""
    channels, kind = shape[1], NUMBERS[dtype]
    planes = [torch.randn(tuple(shape), device=device).to(kind) for _ in range(COPIES)]
    last = [x.contiguous(memory_format=layout.memory_format(True)) for x in planes]
    filters = [torch.randn(channels, 1, k, k, device=device).to(kind) / k for k in (kernel, small)]

    def calls(way: Callable[..., object], maps: list[Tensor]) -> list[Callable[[], object]]:
        return [partial(way, x, *filters) for x in maps]

    one, two = gpu.forward_pair, partial(two_calls, gpu.forward)
    contestants = dict(zip(WAYS, (calls(w, maps) for maps in (planes, last) for w in (one, two)), strict=True))
    with tf32_allowed(dtype == "tf32"):
        able = {name: each for name, each in contestants.items() if each[0]() is not None}
        return dict.fromkeys(WAYS, "") | {n: f"{ms:.4f}" for n, ms in interleaved_on_gpu(able, rounds).items()}


def main(argv: list[str]) -> int:
    """Time all stages and write the table; 0, or 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m native bench --pair", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float16", "tf32"], choices=[*NUMBERS])
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--small", type=int, default=5, help="the smaller kernel (default: 5, the paper's)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    options = parser.parse_args(argv)
    if why := gpu.why_not():
        print(why)
        return 1
    table = Rows(options.results / "native" / f"{stem()}-pair.csv", FIELDS, KEY)
    for dtype, batch, (size, channels, kernel) in itertools.product(options.dtypes, options.batch, STAGES):
        row = dict(zip(KEY, (dtype, batch, channels, size, kernel, options.small, code()), strict=True))
        if row not in table:
            ms = bench(dtype, (batch, channels, size, size), kernel, options.small, options.rounds)
            table.add(row | ms)
            print(*row.values(), *ms.values(), flush=True)
    return 0
