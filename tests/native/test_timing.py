"""Calls that take turns; those on a GPU are tested where one is."""

from native.timing import interleaved


def test_interleaving_times_every_call_and_counts_no_first_one():
    calls = {"a": [], "b": []}
    times = interleaved({name: lambda kept=kept: kept.append(None) for name, kept in calls.items()}, 0.01)
    assert set(times) == {"a", "b"}
    assert len(calls["a"]) == len(calls["b"]) >= 2
