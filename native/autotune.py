"""Which of several equal ways computes a shape fastest: measured once, then kept, in memory and on disk.

A choice once written is never changed by a later, noisier measurement: ways differ in round-off, and a training run
that is killed and continued must give the same bits. So the first process that measures a shape class decides for
all; on a CPU where nothing can be written, nothing is measured, and a fixed rule decides.

On disk: one small JSON file a shape class, in the cache's folder named by CPU, torch version and thread count, or by
GPU and torch version. Deleting it is harmless; a broken file counts as absent.
``REPLK_CPU_PLAN=fixed`` switches measuring off.
"""

import functools
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from native import cache
from native.geometry import Pair, Shape

Way = Callable[..., torch.Tensor]
Arguments = Sequence[Any]

SECONDS = 0.3  # spent on a shape class, unless one round of all ways takes longer
ROUNDS = 5  # interleaved, so that a busy moment hits every way
HOPELESS = 4.0  # a way this many times slower than the best on a slice is not timed in full
MARGIN = 0.95  # a way replaces the first listed (stock) only if it takes less than this part of its time


def shape_class(
    function: str, like: torch.Tensor, shape: Shape, kernel_size: Shape, stride: Pair, padding: Pair, dilation: Pair
) -> str:
    """Names what decides the speed: batch and channels to a power of two, larger maps to a multiple of 8."""
    n, c = (min(1 << (v - 1).bit_length(), limit) for v, limit in zip(shape[:2], (32, 2048), strict=True))
    h, w = (v if v <= 32 else -(-v // 8) * 8 for v in shape[2:])
    layout = "channels_last" if like.stride(1) == 1 else "nchw"
    geometry = f"kernel {tuple(kernel_size)} stride {stride} padding {padding} dilation {dilation}"
    return f"{function} {like.dtype} {layout} n{n} c{c}{'' if shape[1] % 16 == 0 else '+'} map {h}x{w} {geometry}"


def choose(
    shape_class: str,
    ways: Mapping[str, Way],
    rule: str,
    call: Arguments,
    part: Arguments,
    extra: Mapping[str, float] | None = None,
) -> str:
    """The name of the way to take for `shape_class`.

    Args:
        shape_class: names the function and the shapes; equal classes share the choice.
        ways: by name, stock ways first; each called as ``way(*call)``.
        rule: the name taken where nothing may be measured.
        call: the arguments at hand, timed as they are: no random numbers are drawn, nothing is written to them.
        part: arguments for a small part of the same work, which weeds out the hopeless.
        extra: seconds, by name, that a call of a way costs where it is used beyond what is timed here.
    """
    if len(ways) == 1 or os.environ.get("REPLK_CPU_PLAN") == "fixed":
        return rule
    folder = _folder(torch.get_num_threads())
    if folder is None:
        return rule
    kept = recall(folder, shape_class, ways)
    if kept is not None:
        return kept
    times = {name: seconds + (extra or {}).get(name, 0.0) for name, seconds in measure(ways, call, part).items()}
    return remember(folder, shape_class, fastest(times), times, ways) or rule


def measure(ways: Mapping[str, Way], call: Arguments, part: Arguments) -> dict[str, float]:
    """Least seconds of each way that is not hopeless, in the order of `ways`."""
    for way in ways.values():
        _seconds(way, part)  # compiles, fills caches
    quick = {name: _seconds(way, part) for name, way in ways.items()}
    for name in [n for n, seconds in quick.items() if seconds < HOPELESS**2 * min(quick.values())]:
        quick[name] = min(quick[name], _seconds(ways[name], part), _seconds(ways[name], part))
    limit = HOPELESS * min(quick.values())
    times: dict[str, list[float]] = {name: [] for name, seconds in quick.items() if seconds <= limit}
    for name in times:
        _seconds(ways[name], call)  # compiles, fills caches
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for name, seconds in times.items():
            seconds.append(_seconds(ways[name], call))
        if time.perf_counter() - start > SECONDS:
            break
    return {name: min(seconds) for name, seconds in times.items()}


def _seconds(way: Way, arguments: Arguments) -> float:
    start = time.perf_counter()
    way(*arguments)
    return time.perf_counter() - start


def fastest(times: Mapping[str, float]) -> str:
    """The first way, unless another takes less than `MARGIN` of its time."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[best] < MARGIN * times[first] else first


@functools.cache
def cpu_name() -> str:
    """The processor's name, family and model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        told = {key.strip(): value.strip() for key, value in fields.items()}
        parts = [told[key] for key in ("model name", "cpu family", "model") if key in told]
    except (OSError, ValueError):
        parts = []
    return " ".join([*parts, platform.machine(), torch.backends.cpu.get_cpu_capability()])


@functools.cache
def _folder(threads: int) -> Path | None:
    """The folder of this environment's choices; None where it cannot be written."""
    try:
        folder = cache.folder("cpu", cache.slug(f"{cpu_name()} torch {torch.__version__} {threads} threads"))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # no home directory is a RuntimeError
        return None


def recall(folder: Path, shape_class: str, ways: Collection[str]) -> str | None:
    """The choice on disk; None if there is none, or none that is meant."""
    try:
        kept = json.loads(_file(folder, shape_class).read_text())
        choice: str = kept["choice"]
        return choice if kept["class"] == shape_class and choice in ways else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(
    folder: Path, shape_class: str, choice: str, times: Mapping[str, float], ways: Collection[str]
) -> str | None:
    """Keep a choice and its seconds, or adopt what another process kept meanwhile; None if nothing can be written."""
    entry = {"class": shape_class, "choice": choice, "milliseconds": {n: round(1e3 * t, 4) for n, t in times.items()}}
    path = _file(folder, shape_class)
    try:
        with cache.beside(path) as own:
            own.write_text(json.dumps(entry, indent=1))
            try:
                os.link(own, path)  # fails if the file exists: the first writer wins
            except OSError:
                kept = recall(folder, shape_class, ways)
                if kept is not None:
                    return kept
                own.replace(path)  # broken, or a file system without links
    except OSError:
        return None
    return choice


def _file(folder: Path, shape_class: str) -> Path:
    return folder / f"{hashlib.sha256(shape_class.encode()).hexdigest()[:24]}.json"
