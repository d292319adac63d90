"""Which of several equal ways computes a shape fastest: measured once, then kept, in memory and on disk.

A choice once written is never changed by a later, noisier measurement: ways differ in round-off, and a training run
that is killed and continued must give the same bits. So the first process that measures a shape class decides for
all; on a CPU where nothing can be written, nothing is measured, and a fixed rule decides.

Ways that lie close are timed until their order is sure or does not matter. Rounds in which a thread had to wait for a
CPU do not count; where none is left, the machine is busy, and the choice is marked so: it stands, as two runs of one
command must agree, until ``python -m native plan --remeasure`` replaces it. A process's `decisions` go into checkpoints
and `adopt` takes them from there, so that a continued run has them whatever is kept by then.

On disk: one small JSON file a shape class, in the cache's folder named by CPU, torch version and thread count, or by
GPU and torch version. Deleting it is harmless; a broken file counts as absent.
``REPLK_CPU_PLAN=fixed`` switches measuring off.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from native import cache
from native.geometry import Pair, Shape, size_class

Way = Callable[..., torch.Tensor]
Arguments = Sequence[Any]

SECONDS = 0.3  # spent on a shape class where the order is clear, unless one round of all ways takes longer
LIMIT = 1.2  # likewise where it is not
ROUNDS = 5  # interleaved, so that a busy moment hits every way; as many must agree on an order, or all but few of more
CLOSE = 1.15  # ways this many times slower than the best are not timed further
SAME = 0.03  # a difference that does not matter
QUIET = 0.05, 3e-5  # share of a call, and seconds, that a thread may wait for a CPU
HOPELESS = 4.0  # a way this many times slower than the best on a slice is not timed in full
LONG = 0.05  # seconds of a call that another process does not make to look hopeless by taking the CPU once
MARGIN = 0.95  # a way replaces the first listed (stock) only if it takes less than this part of its time


def shape_class(
    function: str, like: torch.Tensor, shape: Shape, kernel_size: Shape, stride: Pair, padding: Pair, dilation: Pair
) -> str:
    """Names what decides the speed: batch and channels to a power of two, larger maps to a multiple of 8."""
    n, c = (min(1 << (v - 1).bit_length(), limit) for v, limit in zip(shape[:2], (32, 2048), strict=True))
    h, w = map(size_class, shape[2:])
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
    threads = torch.get_num_threads()
    folder, name = _folder(threads), f"{threads} threads {shape_class}"
    if folder is None:
        return rule
    known = _decisions.get(name)
    if known is not None and known in ways:
        return known
    choice = recall(folder, shape_class, ways)
    if choice is None:
        times, quiet = measure(ways, call, part)
        times = {way: seconds + (extra or {}).get(way, 0.0) for way, seconds in times.items()}
        choice = remember(folder, shape_class, fastest(times), times, ways, quiet) or rule
    _decisions[name] = choice
    return choice


_decisions: dict[str, str] = {}
_followers: list[dict[Any, Any]] = []


def decisions() -> dict[str, str]:
    """What this process computes with, by thread count and shape class: for a checkpoint."""
    return dict(_decisions)


def adopt(decided: Mapping[str, str]) -> None:
    """Compute as the process did whose `decisions` these are, where the ways exist here too."""
    if any(_decisions.get(name) != way for name, way in decided.items()):
        _decisions.update(decided)
        for follower in _followers:
            follower.clear()


def forget() -> None:
    """Forget what this process computes with; what is kept on disk stays."""
    _decisions.clear()
    _folder.cache_clear()
    for follower in _followers:
        follower.clear()


def following(memory: dict[Any, Any]) -> dict[Any, Any]:
    """Have `memory`, of what was made of choices, emptied when others are adopted; returns it."""
    _followers.append(memory)
    return memory


class Sample(NamedTuple):
    """One timed call."""

    seconds: float
    waited: float  # seconds in which one of its threads was ready and had no CPU, or the machine had none to give

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else took a CPU away."""
        share, seconds = QUIET
        return self.waited <= max(share * self.seconds, seconds)


def measure(ways: Mapping[str, Way], call: Arguments, part: Arguments) -> tuple[dict[str, float], bool]:
    """Median seconds of each way that is not hopeless, in the order of `ways`, and whether the machine was quiet."""
    for way in ways.values():
        _sample(way, part)  # compiles, fills caches
    quick = {name: _undisturbed(way, part) for name, way in ways.items()}
    for name in [n for n, seconds in quick.items() if seconds < HOPELESS**2 * min(quick.values())]:
        quick[name] = min(quick[name], *(_sample(ways[name], part).seconds for _ in range(2)))
    limit = HOPELESS * min(quick.values())
    samples: dict[str, list[Sample]] = {name: [] for name, seconds in quick.items() if seconds <= limit}
    for name in samples:
        _sample(ways[name], call)  # compiles, fills caches
    start, close = time.perf_counter(), list(samples)
    for turn in itertools.count(1):
        for name in close:
            samples[name].append(_sample(ways[name], call))
        spent = time.perf_counter() - start
        if turn >= ROUNDS or spent > SECONDS:
            times = {name: _median(of) for name, of in samples.items()}
            best = min(times[name] for name in close)  # what was left out may have a smaller time now
            close = [name for name in close if times[name] < CLOSE * best]
            if spent > LIMIT or _is_settled([samples[name] for name in close]):
                break
    return times, all(any(sample.is_quiet for sample in samples[name]) for name in close)


def _sample(way: Way, arguments: Arguments) -> Sample:
    waits, stolen = _waits(), _stolen()
    start = time.perf_counter()
    way(*arguments)
    seconds = time.perf_counter() - start
    longest = max((after - waits.get(thread, 0.0) for thread, after in _waits().items()), default=0.0)
    return Sample(seconds, max(longest, _stolen() - stolen))


def _undisturbed(way: Way, arguments: Arguments) -> float:
    """Seconds of a first quiet call; of the shortest of five where none is, or of one that takes long anyway."""
    shortest = math.inf
    for _ in range(5):
        sample = _sample(way, arguments)
        shortest = min(shortest, sample.seconds)
        if sample.is_quiet or sample.seconds > LONG:
            break
    return shortest


def _waits() -> dict[str, float]:
    """Seconds for which each thread of this process has been ready without a CPU; empty where nobody counts them."""
    waits = {}
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waits[thread.parent.name] = int(thread.read_text(encoding="utf-8").split()[1]) / 1e9
        except (OSError, ValueError, IndexError):  # the thread is gone
            continue
    return waits


def _stolen() -> float:
    """Seconds that the host has kept from this machine's CPUs; 0 where nobody counts them."""
    if sys.platform == "win32":
        return 0.0
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _median(samples: Sequence[Sample]) -> float:
    """Of those that nothing disturbed; where there are none, the least."""
    quiet = [sample.seconds for sample in samples if sample.is_quiet]
    return statistics.median(quiet) if quiet else min(sample.seconds for sample in samples)


def _is_settled(close: Sequence[Sequence[Sample]]) -> bool:
    """Whether the fastest of these is sure, by quiet rounds in pairs, or the rest as fast as it."""
    best = min(close, key=_median)
    for other in close:
        if other is best:
            continue
        pairs = [(a.seconds, b.seconds) for a, b in zip(best, other, strict=True) if a.is_quiet and b.is_quiet]
        lost, rounds = sum(a >= b for a, b in pairs), len(pairs)
        same = rounds >= 2 * ROUNDS and abs(_median(other) / _median(best) - 1) < SAME
        if rounds < ROUNDS or not (lost <= rounds // ROUNDS - 1 or same):
            return False
    return True


def fastest(times: Mapping[str, float]) -> str:
    """The first way, unless another takes less than `MARGIN` of its time."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[best] < MARGIN * times[first] else first


def _cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor, in its words; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor() -> str:
    """The processor's name, such as `AMD EPYC`; on ARM, where Linux tells none, the maker's and the core's number."""
    told = _cpuinfo()
    if "model name" in told:
        return told["model name"]
    if "CPU part" in told:
        return f"ARM {told.get('CPU implementer', '')} {told['CPU part']}"
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


@functools.cache
def cpu_name() -> str:
    """The processor's name, family and model, as far as the system tells."""
    told = _cpuinfo()
    parts = [processor(), *(told[key] for key in ("cpu family", "model") if key in told)]
    return " ".join([*parts, platform.machine(), torch.backends.cpu.get_cpu_capability()])


def environment() -> str:
    """Names the CPU and torch in a folder's name, before the threads."""
    return cache.slug(f"{cpu_name()} torch {torch.__version__}")


@functools.cache
def _folder(threads: int) -> Path | None:
    """The folder of this environment's choices; None where it cannot be written."""
    try:
        folder = cache.folder("cpu", f"{environment()}-{threads}-threads")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # no home directory is a RuntimeError
        return None


class Kept(NamedTuple):
    """A choice on disk."""

    shape_class: str
    choice: str
    busy: bool  # the machine, when it was measured
    milliseconds: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> "Kept | None":
        """None for a broken file, which counts as absent."""
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            return cls(entry["class"], entry["choice"], entry.get("busy", False), entry.get("milliseconds", {}))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def text(self) -> str:
        """The file's content."""
        entry = {"class": self.shape_class, "choice": self.choice, "busy": self.busy, "milliseconds": self.milliseconds}
        return json.dumps(entry, indent=1)


def recall(folder: Path, shape_class: str, ways: Collection[str]) -> str | None:
    """The choice on disk; None if there is none, or none that is meant."""
    kept = Kept.read(_file(folder, shape_class))
    return kept.choice if kept and kept.shape_class == shape_class and kept.choice in ways else None


def remember(
    folder: Path,
    shape_class: str,
    choice: str,
    times: Mapping[str, float],
    ways: Collection[str],
    quiet: bool = True,
) -> str | None:
    """Keep a choice and its seconds, or adopt what another process kept meanwhile; None if nothing can be written."""
    milliseconds = {name: round(1e3 * seconds, 4) for name, seconds in times.items()}
    path = _file(folder, shape_class)
    try:
        with cache.beside(path) as own:
            own.write_text(Kept(shape_class, choice, not quiet, milliseconds).text, encoding="utf-8")
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
