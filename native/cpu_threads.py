"""Work side by side on the threads that torch's own operators use."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """torch's OpenMP runtime, if it is GNU's: its workers spin for a while, and would fight with threads of our own."""
    packages = Path(torch.__file__).parents[1]
    for path in (*packages.glob("torch/lib/libgomp*"), *packages.glob("torch.libs/libgomp*")):  # the latter on ARM
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "depthwise")


if hasattr(os, "register_at_fork"):  # Windows never forks
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def in_parallel(part: Callable[[int], None], threads: int) -> None:
    """part(0), …, part(threads − 1), each by one thread."""
    openmp = _openmp()
    if openmp is None:
        list(_pool(threads).map(part, range(threads)))
        return
    left, errors = iter(range(threads)), []

    def work(_: object) -> None:
        for i in left:  # the interpreter's lock gives each number to one thread, however many come
            try:
                part(i)
            except Exception as error:
                errors.append(error)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    openmp.GOMP_parallel(callback, None, ctypes.c_uint(threads), ctypes.c_uint(0))
    if errors:
        raise errors[0]
