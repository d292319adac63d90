"""Timing of calls that take turns, so that a busy moment hits them all."""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch


def counts_cpu_time() -> bool:
    """Whether work on CPUs is timed by the clock of its one thread, which a busy machine does not stretch."""
    return torch.get_num_threads() == 1 and sys.platform != "win32"  # there that clock moves every 16 ms


def interleaved(calls: dict[str, Callable[[], object]], budget: float, rounds: int = 18) -> dict[str, float]:
    """Median seconds of each call, after a first that does not count; `budget` seconds in all, if one round fits."""
    clock = time.thread_time if counts_cpu_time() else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    first = {name: _seconds(clock, call) for name, call in calls.items()}
    begin = time.perf_counter()
    orders = itertools.cycle(itertools.permutations(calls))  # memory freed by one is a gift to the next
    for order in itertools.islice(orders, rounds):
        for name in order:
            if not times[name] or first[name] < budget:  # what takes so long was timed once, and is not noisy
                times[name].append(_seconds(clock, calls[name]))
        if time.perf_counter() - begin > budget:
            break
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _seconds(clock: Callable[[], float], call: Callable[[], object]) -> float:
    begin = clock()
    call()
    return clock() - begin


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


def interleaved_on_gpu(contestants: dict[str, list[Callable[[], object]]], rounds: int) -> dict[str, float]:
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
    return {name: statistics.median(values) for name, values in times.items()}
