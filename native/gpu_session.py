"""``python -m native gpu``: all that a machine with an NVIDIA GPU is to answer, the most telling first.

Each part runs in a process of its own and writes its table row by row, so that whatever ends the session leaves what
was measured. What is done stands in ``RESULTS/native/gpu-parts.csv``, with a digest of the code like every row: the
same command goes on where it was stopped, and other code begins again. A part that fails, hangs or is cut off is named,
and the next begins. ``--dry-run`` prints the plan, on any machine.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from native import bench_gpu, gpu
from native.rows import ROOT, Rows, code

FIELDS = ("part", "gpu", "code", "status", "seconds")
LATE = 3  # a part that takes so many times its estimate hangs
_PLANES = ("--precision", "bf16", "--batch-size", "64", "--training-batch-size", "32", "--rounds", "10")
_LAYER = ("-m", "native", "bench", "--device", "cuda", "--results", "{results}")
_KERNELS = ("3", "5", "7", "13", "21", "31", "51", "63")


@dataclass(frozen=True)
class Part:
    """A question to a GPU.

    Attributes:
        name: In one word.
        asks: The question.
        command: What answers it, `python`'s arguments or another program's; {results} and {stem} stand for the folder
            of results and for the GPU and the versions.
        seconds: How long it may take on an H100: an estimate, not a measurement.
        environment: What is set for it.
    """

    name: str
    asks: str
    command: tuple[str, ...]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)


def _nets(name: str, *flags: str) -> tuple[str, ...]:
    return ("-m", "native", "bench", "--models", *flags, "--csv", f"{{results}}/native/models-{{stem}}-{name}.csv")


def _sanitized(tool: str) -> Part:
    """The check under one of compute-sanitizer's tools; torch's allocator would hide what lies between two tensors."""
    flags = ("--tool", tool, "--error-exitcode", "1", "--report-api-errors", "no")
    command = ("compute-sanitizer", *flags, sys.executable, "-m", "native", "check", "--backend", "nvrtc")
    return Part(tool, f"does compute-sanitizer's {tool} find anything?", command, 120,
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})  # fmt: skip


PARTS = (
    Part("check", "is every result right?", ("-m", "native", "check", "--backend", "nvrtc"), 60),
    Part("nets", "is RepLKNet-31B faster than Swin-B in bf16?", _nets("bf16", "--passes", "inference", *_PLANES), 60),
    Part("steps", "what does RepLKNet-31's training step cost over RepLKNet-3's in bf16?",
         _nets("bf16-training", "--passes", "training", *_PLANES), 40),
    Part("layer", "how fast is the layer's forward in 16 bits?",
         (*_LAYER, "--functions", "forward", "--dtypes", "float16", "bfloat16", "--kernels", *_KERNELS), 60),
    Part("gradients", "how fast are its gradients in 16 bits?",
         (*_LAYER, "--functions", "grad_input", "grad_weight", "--dtypes", "float16", "--kernels", *_KERNELS), 90),
    Part("tests", "do the GPU's tests pass?", ("-m", "pytest", "-q", "-m", "gpu"), 120),
    Part("crossover", "from which kernel on does the frequency domain beat ours?",
         (*_LAYER, "--functions", "forward", "--dtypes", "float16", "tf32", "float32", "--fft", "--rounds", "3",
          "--batch", "8", "--sizes", "64", "128", "--kernels", "31", "63", "101", "127"), 50),
    Part("pair", "does reading x once for two filters pay?",
         ("-m", "native", "bench", "--pair", "--results", "{results}"), 30),
    Part("compiled", "does torch.compile change the order of the nets in bf16?",
         _nets("bf16-compiled", "--compile", "--passes", "inference", "training", *_PLANES), 240),
    Part("float32", "how fast are the nets in strict fp32?",
         _nets("fp32", "--batch-size", "64", "--training-batch-size", "32", "--sides", "224", "384"), 120),
    Part("batches", "how fast is the layer at other batches?",
         (*_LAYER, "--functions", "forward", "--dtypes", "float16", "--batch", "1", "8"), 60),
    Part("tf32", "how fast is the layer in tf32 and fp32?",
         (*_LAYER, "--dtypes", "tf32", "float32", "--kernels", *_KERNELS), 240),
    *(Part(name, f"what does {name} find here?",
           ("-m", "ablations.run", name, "--timing", "--results", "{results}"), seconds)
      for name, seconds in (("guideline1", 60), ("guideline1_network", 120), ("table6", 400))),
    *map(_sanitized, ("memcheck", "racecheck", "initcheck", "synccheck")),
)  # fmt: skip


def why_left_out(part: Part) -> str | None:
    """Why it cannot run on this machine, or None."""
    if part.command[0].startswith("-") or shutil.which(part.command[0]):
        return None
    return f"{part.command[0]} is not installed (it is part of the CUDA toolkit)"


def planned(parts: tuple[Part, ...], minutes: float, done: Rows, here: str) -> Iterator[str]:
    """The lines of a dry run."""
    yield f"{len(parts)} parts, the most telling first; seconds are estimates for an H100, not measurements:"
    total = 0
    for number, part in enumerate(parts, 1):
        if _row(part, here) in done:
            yield f"{number:3}. {part.name}: done on this code"
            continue
        left_out = why_left_out(part)
        total += 0 if left_out else part.seconds
        when = f"left out: {left_out}" if left_out else f"{part.seconds} s, ends by {total / 60:.1f} min"
        late = " (beyond the budget)" if not left_out and total > 60 * minutes else ""
        yield f"{number:3}. {part.name}: {part.asks} {when}{late}"
        yield f"     {' '.join(part.command)}"


def _row(part: Part, here: str, **found: object) -> dict[str, object]:
    return {"part": part.name, "gpu": here, "code": code(), "status": "done", **found}


def run(part: Part, results: Path, here: str, limit: float) -> str:
    """Run one part for at most `limit` seconds; how it ended: done, failed, or cut off."""
    given = [word.format(results=results, stem=here) for word in part.command]
    command = [sys.executable, *given] if given[0].startswith("-") else given
    environment = {**os.environ, **part.environment}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            if sys.platform == "win32":
                process.kill()  # there are no groups of processes: what it has started may go on
            else:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            return "cut off"
    return "done" if status == 0 else f"failed with {status}"


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    p = argparse.ArgumentParser(prog="python -m native gpu", description=__doc__)
    p.add_argument("--dry-run", action="store_true", help="print the plan; needs no GPU")
    p.add_argument("--minutes", type=float, default=8.0, help="nothing begins or goes on after them (default: 8)")
    p.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART", help="these parts")
    p.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    return p


def main(argv: list[str]) -> int:
    """Run what is missing within the budget; 0 if nothing failed and nothing is left."""
    options = parser().parse_args(argv)
    parts = tuple(part for part in PARTS if not options.only or part.name in options.only)
    why, results = gpu.why_not(), options.results.resolve()
    if why and not options.dry_run:
        print(f"{why} --dry-run prints what a machine with a GPU would run.", file=sys.stderr)
        return 2
    here, path = "GPU" if why else bench_gpu.stem(), results / "native" / "gpu-parts.csv"
    done = Rows(path if path.is_file() or not options.dry_run else None, FIELDS, ("part", "gpu", "code", "status"))
    if options.dry_run:
        print(*planned(parts, options.minutes, done, here), sep="\n")
        return 0
    return _run_all(parts, options.minutes, done, results, here)


def _run_all(parts: tuple[Part, ...], minutes: float, done: Rows, results: Path, here: str) -> int:
    end, unfinished = time.monotonic() + 60 * minutes, []
    for part in parts:
        left = end - time.monotonic()
        if _row(part, here) in done:
            continue
        if why := why_left_out(part):
            print(f"== {part.name}: left out, {why}", flush=True)
            continue
        if left <= 0:
            unfinished.append(f"{part.name} (not begun)")
            continue
        print(f"== {part.name}: {part.asks}", flush=True)
        begin = time.monotonic()
        status = run(part, results, here, min(left, LATE * part.seconds))
        seconds = time.monotonic() - begin
        done.add(_row(part, here, status=status, seconds=f"{seconds:.1f}"))
        print(f"== {part.name}: {status} after {seconds:.0f} s", flush=True)
        if status != "done":
            unfinished.append(f"{part.name} ({status})")
    print(f"left: {', '.join(unfinished)}" if unfinished else "all parts are done", flush=True)
    return int(bool(unfinished))
