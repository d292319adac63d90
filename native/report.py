"""``python -m native report``: what the compiler made of every kernel, read from its machine code; needs no GPU.

Registers, stack, spills, shared memory, blocks a multiprocessor, the instruction mix of the hot loop, issued over
useful multiply-adds, and, labelled as predicted, the time of Table 1's layers against the roofline.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from native import gpu, gpu_plans
from native.accuracy import NUMBERS
from native.layers import STAGES, taps_on_pixels

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Shared memory of a multiprocessor and the most a block may use (KiB), threads of a multiprocessor: CUDA's table of
# technical specifications per compute capability.
LIMITS = {75: (64, 64, 1024), 80: (164, 163, 2048), 86: (100, 99, 1536), 89: (100, 99, 1536), 90: (228, 227, 2048),
          100: (228, 227, 2048), 120: (100, 99, 1536)}  # fmt: skip
# Memory in GB/s, dense fp16 TFLOP/s by mma.sync, fp32 TFLOP/s of A100 80GB and H100 SXM; 85 %, 75 %, 75 % are assumed.
ROOFS = {80: (2039, 312, 19.5), 90: (3350, 0.62 * 989, 67)}
SHAPES = (
    *((size, kernel) for size in (64, 32, 16) for kernel in (31, 13, 3)),
    *((size, kernel) for size, _, kernel in STAGES),
)
COLUMNS = ("name", "kernel", "arch", "dtype", "registers", "stack", "spills", "shared", "threads", "blocks_per_sm",
           "hot_loop", "issued_useful", "predicted_ms")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One kernel of one plan."""

    name: str
    problem: gpu_plans.Problem
    launch: gpu_plans.Launch


def target(capability: int) -> gpu_plans.Target:
    """A GPU of that compute capability."""
    return gpu_plans.Target(capability, LIMITS[capability][1] * 1024)


def variants(capability: int, dtypes: Sequence[str] = ("float16", "tf32", "float32")) -> Iterator[Variant]:
    """Every kernel of the shapes of Table 1 and of RepLKNet-31's stages, in planes and, named `last`, in channels_last.

    bf16 differs from fp16 by one modifier.
    """
    dtypes = [name for name in dtypes if name != "tf32" or capability >= 80]
    for name in dtypes:
        for size, kernel in SHAPES:
            shape = (64, 384, size, size)
            p = gpu_plans.problem(shape, NUMBERS[name], (kernel,) * 2, (1, 1), (kernel // 2,) * 2, (1, 1))
            p = replace(p, tf32=name == "tf32")
            for function in gpu_plans.PLANS:
                for here in dict.fromkeys((p, gpu_plans.in_layout(function, p, True, target(capability)))):
                    launch = gpu_plans.plan(function, here, True, target(capability)).launches[0]
                    yield Variant(f"{function}-{'last-' * here.last}{size}x{size}-k{kernel}", here, launch)


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm, from the PATH or from triton's wheel."""
    if found := shutil.which(name):
        return found
    spec = find_spec("triton")
    own = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec and spec.origin else None
    return str(own) if own and own.exists() else None


def why_not() -> str | None:
    """One sentence on why no report can be made here, or None."""
    if find_spec("cuda") is None or find_spec("cuda.core") is None:
        return "The report compiles with NVRTC: pip install cuda-core cuda-bindings nvidia-cuda-nvrtc."
    if tool("cuobjdump") is None or tool("nvdisasm") is None:
        return "The report reads machine code with cuobjdump and nvdisasm: install triton or the CUDA toolkit."
    return None


def _hot_loop(listing: str) -> dict[str, int]:
    """Instructions of the innermost loop with the most multiply-adds, by mnemonic."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        if found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)(.*?);", line):
            instructions.append((found[1], found[2]))
    best: tuple[int, int, Counter[str]] = (0, 0, Counter())
    for end, (name, rest) in enumerate(instructions):
        jump = re.search(r"(\.L_x_\d+)", rest) if name == "BRA" else None
        if jump and labels.get(jump[1], end + 1) <= end:
            body = Counter(n for n, _ in instructions[labels[jump[1]] : end + 1])
            best = max(best, (body["HMMA"] + body["FFMA"], -body.total(), body), key=lambda b: b[:2])
    return dict(best[2].most_common())


def issued_over_useful(v: Variant) -> float | None:
    """Multiply-adds of the tensor core over those on real pixels, for whole planes; None for other kernels."""
    c, size, kernel = dict(v.launch.constants), v.problem.height, v.problem.kernel[0]
    e = 16 // v.problem.dtype.itemsize  # elements of a block
    if v.launch.entry == "toeplitz_forward":
        rows = range(0, ceil(size / c["IM"]) * c["IM"], c["IM"])
        starts = range(1 - c["IM"], size)
        pairs = sum(0 <= r - i + c["PY"] < kernel for i in rows for r in starts)
        diagonals = [q - 8 // e * j for q in range(c["QF"], c["QF"] + c["QN"]) for j in range(c["QT"])]
        blocks = sum(c["DLO"] <= d <= c["DHI"] for d in diagonals) * ceil(size / 8 / c["QT"])
        return pairs * c["IM"] * blocks * 8 * e / taps_on_pixels(size, kernel) ** 2
    if v.launch.entry == "toeplitz_weight":
        half = c["IM"] // 2 if c["HALVES"] else c["IM"]  # rows that are left out together
        first_rows = [i + u - c["PY"] for i in range(0, size, c["IM"]) for u in range(kernel)]
        pairs = sum(-half < r + h < size for r in first_rows for h in range(0, c["IM"], half))
        columns = range(c["QF"], c["QF"] + c["QN"])
        blocks = sum(c["MLO"] <= q - 2 * j <= c["MHI"] for q in columns for j in range(c["QA"]))
        return pairs * half * blocks * ceil(size / 16 / c["QA"]) * 128 / taps_on_pixels(size, kernel) ** 2
    if v.launch.entry == "toeplitz_weight_last":
        tops = [max(0, r + c["PY"] - kernel + 1) - c["PY"] - r for r in range(0, size, c["X_ROWS"])]
        met = [r + i + u for r in tops for i in range(c["I_ROWS"]) for u in range(0, kernel, 8)]
        step = 8 // e
        diagonals = [q - 2 * step * t for q in range(c["QN"]) for t in range(ceil(kernel / 16))]
        blocks = sum(c["DLO"] <= d <= c["DHI"] + step for d in diagonals) * ceil(size / e / c["QN"])
        return sum(-8 < r < c["X_ROWS"] for r in met) * blocks * 128 * e / taps_on_pixels(size, kernel) ** 2
    return None


def predicted_ms(v: Variant, capability: int, ratio: float | None) -> float | None:
    """Counted work over assumed efficiencies, for the GPUs of ROOFS; nobody timed it."""
    if capability not in ROOFS:
        return None
    memory, matrix, scalar = ROOFS[capability]
    p = v.problem
    moved = 2 * p.batch * p.channels * p.height * p.width * p.dtype.itemsize
    useful = 2 * p.batch * p.channels * taps_on_pixels(p.height, p.kernel[0]) ** 2
    matrix /= 2 if p.tf32 else 1
    compute = useful * (ratio or 1.1) / ((matrix if ratio else scalar) * 1e12 * 0.75)
    return 1e3 * max(moved / (memory * 1e9 * 0.85), compute)


def read(v: Variant, capability: int) -> dict[str, object]:
    """One row of the report: compile, disassemble, count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(gpu.compile_cubin(v.launch, capability))
        usage, listing = (
            subprocess.run([str(tool(name)), flag, str(path)], check=True, capture_output=True, text=True).stdout
            for name, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers, stack, local = (int(re.findall(rf"{k}:(\d+)", usage)[0]) for k in ("REG", "STACK", "LOCAL"))
    threads, shared = v.launch.threads, v.launch.shared + target(capability).reserved
    most, _, resident = LIMITS[capability]
    blocks = min(resident // threads, 65536 // (ceil(registers / 8) * 8 * threads), most * 1024 // shared)
    ratio = issued_over_useful(v)
    values = (v.name, v.launch.entry, f"sm_{capability}", v.problem.number, registers, stack,
              local + listing.count("STL"), v.launch.shared, threads, blocks, _hot_loop(listing),
              ratio and round(ratio, 3), predicted_ms(v, capability, ratio))  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def read_all(chosen: Sequence[tuple[Variant, int]]) -> list[dict[str, object]]:
    """Rows of (variant, compute capability) in that order; compilers and disassemblers run side by side."""
    importlib.import_module("cuda.core")  # threads cannot import it at the same time
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: read(*pair), chosen))


LINE = "{:27}{:22}{:8}{:9}{:>5}{:>6}{:>7}{:>8}{:>8}{:>7}{:>8}{:>11}  {}"
HEAD = ("variant", "kernel", "arch", "dtype", "regs", "stack", "spills", "shared", "threads", "blocks", "issued",
        "predicted", "hot loop")  # fmt: skip
UNITS = ("", "", "", "", "", "bytes", "", "bytes", "", "a SM", "/useful", "ms", "")


def _row(r: dict[str, Any]) -> str:
    mix = " ".join(f"{name} {count}" for name, count in [*r["hot_loop"].items()][:5])
    predicted = f"{r['predicted_ms']:.3f}" if r["predicted_ms"] else "-"
    return LINE.format(*(r[c] for c in COLUMNS[:10]), r["issued_useful"] or "-", predicted, mix)


def main(argv: list[str]) -> int:
    """Print the report, as a table or as JSON; 0 if no kernel has a stack or spills."""
    parser = argparse.ArgumentParser(prog="python -m native report", description=__doc__)
    names = [f"sm_{a}" for a in ARCHITECTURES]
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"], choices=names, metavar="ARCH")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(argv)
    if why := why_not():
        print(why, file=sys.stderr)
        return 1
    rows = read_all([(v, int(arch[3:])) for arch in options.arch for v in variants(int(arch[3:]))])
    if options.json:
        print(json.dumps({"variants": rows}, indent=1))
    else:
        print(LINE.format(*HEAD), LINE.format(*UNITS), sep="\n")
        print(*map(_row, rows), sep="\n")
    return int(any(r["stack"] or r["spills"] for r in rows))
