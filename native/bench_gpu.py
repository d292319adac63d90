"""``python -m native.bench_gpu``: the CUDA kernels beside torch on Table 1's grid, timed on this machine's GPU.

A time is the median over rounds of a CUDA graph of several calls on different inputs, so that neither launch gaps nor a
warm cache flatter it; ours and torch's rounds alternate. Rows go to ``results/native/<gpu>-<versions>.csv``.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from native import gpu, stock

SIZES = (16, 32, 64)  # Table 1
KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FIELDS = ("function", "dtype", "batch", "channels", "size", "kernel", "ours_ms", "torch_ms", "torch_channels_last_ms",
          "copy_ms", "useful_gflop", "speedup", "error", "torch_error")  # fmt: skip


def graph(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for call in calls:
            call()
    return captured


def interleaved(contestants: dict[str, list[Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Median milliseconds of a call for each contestant, their rounds alternating."""
    graphs = {name: graph(calls) for name, calls in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number, name in itertools.product(range(rounds + 1), graphs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graphs[name].replay()
        end.record()
        end.synchronize()
        if number:  # the first round warms up
            times[name].append(start.elapsed_time(end) / len(contestants[name]))
    return {name: median(values) for name, values in times.items()}


def useful_gflop(batch: int, channels: int, size: int, kernel: int) -> float:
    """Twice the multiply-adds on real pixels, the padding's not counted."""
    line = sum(min(size - 1, i + kernel // 2) - max(0, i - kernel // 2) + 1 for i in range(size))
    return 2e-9 * batch * channels * line * line


def _error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


def bench(
    function: str, dtype: str, batch: int, channels: int, size: int, kernel: int, rounds: int
) -> dict[str, object]:
    """One row: `function` is forward, grad_input or grad_weight."""
    kind, padding = DTYPES[dtype], (kernel // 2, kernel // 2)
    geometry = ((1, 1), padding, (1, 1))
    copies = max(2, min(8, 2**28 // (batch * channels * size * size * kind.itemsize)))
    xs = [torch.randn(batch, channels, size, size, device="cuda").to(kind) for _ in range(copies)]
    gs = [torch.randn_like(x) for x in xs] if function == "grad_weight" else xs
    w = (torch.randn(channels, 1, kernel, kernel, device="cuda") / kernel).to(kind)
    last = [x.contiguous(memory_format=torch.channels_last) for x in xs]

    def call(module, x, g):
        if function == "forward":
            return module.forward(x, w, None, *geometry)
        if function == "grad_input":
            return module.grad_input(x, w, tuple(x.shape), *geometry)
        return module.grad_weight(g, x, (kernel, kernel), *geometry)

    contestants = {
        "ours": [lambda x=x, g=g: call(gpu, x, g) for x, g in zip(xs, gs, strict=True)],
        "torch": [lambda x=x, g=g: call(stock, x, g) for x, g in zip(xs, gs, strict=True)],
        "copy": [lambda x=x: x.clone() for x in xs],
    }
    if function == "forward" and kind != torch.float32:
        contestants["torch_channels_last"] = [lambda x=x: F.conv2d(x, w, None, 1, padding, 1, channels) for x in last]
    times = interleaved(contestants, rounds)
    part = slice(0, 4)
    x, g, some = xs[0][:, part].contiguous(), gs[0][:, part].contiguous(), w[part]

    def small(module, cast):
        full, w_part = w, some
        if function == "forward":
            return module.forward(cast(x), cast(w_part), None, *geometry)
        if function == "grad_input":
            return module.grad_input(cast(x), cast(w_part), tuple(x.shape), *geometry)
        return module.grad_weight(cast(g), cast(x), tuple(full.shape[2:]), *geometry)

    exact = small(stock, lambda t: t.double())
    return {
        "function": function, "dtype": dtype, "batch": batch, "channels": channels, "size": size, "kernel": kernel,
        "ours_ms": f"{times['ours']:.4f}", "torch_ms": f"{times['torch']:.4f}", "copy_ms": f"{times['copy']:.4f}",
        "torch_channels_last_ms": f"{times['torch_channels_last']:.4f}" if "torch_channels_last" in times else "",
        "useful_gflop": f"{useful_gflop(batch, channels, size, kernel):.3f}", "speedup": f"{times['torch'] / times['ours']:.2f}",
        "error": f"{_error(small(gpu, lambda t: t), exact):.2e}", "torch_error": f"{_error(small(stock, lambda t: t), exact):.2e}",
    }  # fmt: skip


def main(argv: list[str]) -> int:
    """Time the grid and write the table; 0 if no error is more than twice torch's."""
    parser = argparse.ArgumentParser(prog="python -m native.bench_gpu", description=__doc__)
    parser.add_argument("--functions", nargs="+", default=["forward", "grad_input", "grad_weight"])
    parser.add_argument("--dtypes", nargs="+", default=[*DTYPES])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--kernels", nargs="+", type=int, default=KERNELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("results/native"))
    options = parser.parse_args(argv)
    if why := gpu.why_not():
        print(why)
        return 1
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = (
        options.folder
        / f"{name}-torch{torch.__version__.split('+')[0]}-cuda{torch.version.cuda}-cudnn{torch.backends.cudnn.version()}.csv"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for function, dtype, size, kernel in itertools.product(
            options.functions, options.dtypes, options.sizes, options.kernels
        ):
            row = bench(function, dtype, options.batch, options.channels, size, kernel, options.rounds)
            table.writerow(row)
            file.flush()
            wrong += not float(str(row["error"])) <= 2 * float(str(row["torch_error"])) + 1e-7
            print(*row.values(), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
