"""Calls that take turns; those on a GPU are tested where one is."""

import sys
import time

import torch

from native.timing import interleaved


def test_interleaving_times_every_call_and_counts_no_first_one():
    calls = {"a": [], "b": []}
    times = interleaved({name: lambda kept=kept: kept.append(None) for name, kept in calls.items()}, 0.01)
    assert set(times) == {"a", "b"}
    assert len(calls["a"]) == len(calls["b"]) >= 2


def test_windows_coarse_clock_of_a_thread_times_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    assert interleaved({"a": lambda: None}, 0.01)["a"] > 0
