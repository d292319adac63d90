"""``python -m native bench --device cuda``: the CUDA kernels beside torch on Table 1's grid, in both layouts.

A time is the median over rounds of a CUDA graph of several calls on different inputs, so that neither launch gaps nor a
warm cache flatter it; all contestants' rounds alternate. Ours in channels_last is what such a net pays: where a kernel
works on planes, tensors are copied before and after. All kernels are compiled first, a process a core. Rows go to
``results/native/<gpu>-<versions>.csv`` (with ``--fft`` to ``…-fft.csv``), each as it is measured, with a digest of the
code; the same command goes on with what is there.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from native import aten, cache, fft, gpu, gpu_plans
from native.accuracy import NUMBERS, relative_error, round_to_tf32, tf32_allowed
from native.layers import BATCHES, KERNELS, STAGES, taps_on_pixels
from native.rows import Rows, code
from native.timing import interleaved_on_gpu

FUNCTIONS = ("forward", "grad_input", "grad_weight")
CHECKED = 4  # channels that errors are measured on


class Cell(NamedTuple):
    """What a row is of."""

    function: str
    dtype: str
    batch: int
    channels: int
    size: int
    kernel: int

    @property
    def named(self) -> dict[str, object]:
        """The first columns of its row."""
        return {**self._asdict(), "code": code()}


KEY = (*Cell._fields, "code")
FIELDS = (*KEY, "ours_ms", "ours_channels_last_ms", "torch_ms", "torch_channels_last_ms", "fft_ms", "copy_ms",
          "useful_gflop", "speedup", "error", "torch_error")  # fmt: skip


def grid(
    functions: Iterable[str],
    dtypes: Iterable[str],
    kernels: Iterable[int],
    batches: Iterable[int],
    sizes: Iterable[int] = tuple(BATCHES),
) -> list[Cell]:
    """Table 1's grid for these kernels and maps, and of RepLKNet-31's stages those that have one of the kernels."""
    kernels = list(kernels)
    shapes = [(size, 384, kernel) for size in sizes for kernel in kernels]
    shapes += [stage for stage in STAGES if stage[2] in kernels]
    found = itertools.product(functions, dtypes, batches, shapes)
    return [Cell(function, dtype, n, channels, size, k) for function, dtype, n, (size, channels, k) in found]


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


def _ours_channels_last(function: str, x: Tensor, w: Tensor, g: Tensor, padding: int) -> Tensor:
    result = _call(gpu, function, x, w, g, padding)
    return result if function == "grad_weight" else result.contiguous(memory_format=torch.channels_last)


def bench(cell: Cell, rounds: int, by_fft: bool = False) -> dict[str, object]:
    """One row of the table, with the frequency domain if `by_fft`.

    `copy_ms`, reading and writing a tensor of x's size, is the memory's floor for forward; `speedup` is the time of
    torch's better way over ours.
    """
    function, dtype, batch, channels, size, kernel = cell
    kind, p = NUMBERS[dtype], kernel // 2
    copies = max(2, min(8, 2**28 // (batch * channels * size * size * kind.itemsize)))
    randn = partial(torch.randn, dtype=torch.float32, device="cuda")
    xs, gs = ([randn(batch, channels, size, size).to(kind) for _ in range(copies)] for _ in "xg")
    w = (randn(channels, 1, kernel, kernel) / kernel).to(kind)
    planes = list(zip(xs, gs, strict=True))
    last = [tuple(t.contiguous(memory_format=torch.channels_last) for t in pair) for pair in planes]
    contestants: dict[str, list[Callable[[], object]]] = {
        "ours": [partial(_call, gpu, function, x, w, g, p) for x, g in planes],
        "ours_channels_last": [partial(_ours_channels_last, function, x, w, g, p) for x, g in last],
        "torch": [partial(_call, aten, function, x, w, g, p) for x, g in planes],
        "torch_channels_last": [partial(_call, aten, function, x, w, g, p) for x, g in last],
        "copy": [x.clone for x in xs],
    }
    if by_fft:
        contestants["fft"] = [partial(_call, fft, function, x, w, g, p) for x, g in planes]
    with tf32_allowed(dtype == "tf32"):
        ms = interleaved_on_gpu(contestants, rounds)
    row: dict[str, object] = cell.named | {"fft_ms": ""} | {f"{way}_ms": f"{ms[way]:.4f}" for way in contestants}
    row["useful_gflop"] = f"{useful_gflop(batch, channels, size, kernel):.3f}"
    row["speedup"] = f"{min(ms['torch'], ms['torch_channels_last']) / ms['ours']:.2f}"
    errors = _errors(function, dtype, xs[0], w, gs[0], p)
    return row | {name: f"{error:.2e}" for name, error in zip(("error", "torch_error"), errors, strict=True)}


def _errors(function: str, dtype: str, x: Tensor, w: Tensor, g: Tensor, padding: int) -> list[float]:
    """Ours and torch's relative errors on a few channels, against float64."""
    x, g, w = x[:, :CHECKED].contiguous(), g[:, :CHECKED].contiguous(), w[:CHECKED]
    exact = _call(aten, function, x.double(), w.double(), g.double(), padding)
    with tf32_allowed(dtype == "tf32"):
        ours = _call(gpu, function, x, w, g, padding)
    if dtype == "tf32":  # torch has no such convolution: as `native.accuracy` defines its error
        x, w, g = map(round_to_tf32, (x, w, g))
    return [relative_error(result, exact) for result in (ours, _call(aten, function, x, w, g, padding))]


def stem() -> str:
    """Names the GPU and the versions: how the files of a bench are called."""
    versions = f"torch{torch.__version__.split('+')[0]}-cuda{torch.version.cuda}-cudnn{torch.backends.cudnn.version()}"
    return f"{cache.slug(torch.cuda.get_device_name().lower())}-{versions}"


def launches(cells: Sequence[Cell], target: gpu_plans.Target) -> list[gpu_plans.Launch]:
    """The different kernels that the cells launch, in both layouts, for all channels and for those that are checked."""
    found: dict[tuple[object, ...], gpu_plans.Launch] = {}
    for cell in itertools.chain(cells, (cell._replace(channels=CHECKED) for cell in cells)):
        shape, pad = (cell.batch, cell.channels, cell.size, cell.size), (cell.kernel // 2,) * 2
        with tf32_allowed(cell.dtype == "tf32"):
            problem = gpu_plans.problem(shape, NUMBERS[cell.dtype], (cell.kernel,) * 2, (1, 1), pad, (1, 1))
        for here in (problem, gpu_plans.in_layout(cell.function, problem, True, target)):
            plan = gpu_plans.plan(cell.function, here, False, target)
            found |= {(step.source, step.entry, step.element, step.constants): step for step in plan.launches}
    return list(found.values())


def precompile(steps: Iterable[gpu_plans.Launch], capability: int) -> None:
    """Compile what is not on the disk yet, a process a core; one that fails is left to the launch to tell."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(gpu.compile_cubin, step, capability) for step in steps]:
            done.exception()


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m native bench --device cuda", description=__doc__)
    p.add_argument("--functions", nargs="+", default=FUNCTIONS, choices=FUNCTIONS)
    p.add_argument("--dtypes", nargs="+", default=[*NUMBERS], choices=[*NUMBERS])
    p.add_argument("--kernels", nargs="+", type=int, default=KERNELS)
    p.add_argument("--batch", nargs="+", type=int, default=[64])
    p.add_argument("--sizes", nargs="+", type=int, default=[*BATCHES], help="maps (default: Table 1's)")
    p.add_argument("--fft", action="store_true", help="time the frequency domain too")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    return p


def main(argv: list[str]) -> int:
    """Time the grid and write the table; 0 if no error is more than twice torch's."""
    options = _parser().parse_args(argv)
    if why := gpu.why_not():
        print(why)
        return 1
    name = f"{stem()}{'-fft' * options.fft}.csv"  # a file of its own: elsewhere the column would be empty
    table = Rows(options.results / "native" / name, FIELDS, KEY)
    wanted = grid(options.functions, options.dtypes, options.kernels, options.batch, options.sizes)
    missing = [cell for cell in wanted if cell.named not in table]
    target = gpu.target(torch.cuda.current_device())
    precompile(launches(missing, target), target.capability)
    wrong = 0
    for cell in missing:
        row = bench(cell, options.rounds, options.fft)
        table.add(row)
        wrong += not float(str(row["error"])) <= 2 * float(str(row["torch_error"])) + 1e-7
        print(*row.values(), flush=True)
    return int(wrong > 0)
