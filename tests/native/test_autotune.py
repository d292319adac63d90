"""The plan under noise: what is timed how often, what is kept, and what a continued run takes from its checkpoint."""

import itertools
import json
import random

import pytest
import torch

from native import autotune, cpu
from native.autotune import Sample

pytestmark = pytest.mark.usefixtures("empty_cache")
X = torch.ones(1)


@pytest.fixture
def machine(monkeypatch):
    """Ways that take what they are told on a clock of their own; returns `run(seconds by way, noise, waited)`."""
    clock, counts = [0.0], {}
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock[0])

    def run(seconds, noise=lambda _: 1.0, waited=lambda: 0.0):
        turns = {name: itertools.count() for name in seconds}

        def sample(way, arguments):
            counts[way] = counts.get(way, 0) + 1
            wait = waited()
            taken = seconds[way] * noise(next(turns[way])) + wait
            clock[0] += taken
            return Sample(taken, wait)

        counts.clear()
        monkeypatch.setattr(autotune, "_sample", sample)
        return autotune.measure({name: name for name in seconds}, (X,), (X,)), dict(counts)

    return run


def test_a_clear_order_takes_five_rounds(machine):
    (times, quiet), counts = machine({"stock": 2e-3, "other": 1e-3})
    assert times == {"stock": 2e-3, "other": 1e-3}
    assert quiet
    before = 5  # of a part: a first, one, two more, and the first of the whole
    assert counts == {"stock": before + 5, "other": before + 5}


def test_only_what_lies_close_is_timed_on_and_until_the_order_is_sure(machine):
    draw = random.Random(0)
    noise = {"stock": 1.0, "near": 0.93, "far": 1.5}
    (times, _), counts = machine({name: 1e-3 * f for name, f in noise.items()}, lambda _: draw.uniform(0.85, 1.15))
    assert counts["near"] == counts["stock"] > counts["far"]
    assert min(times, key=times.get) == "near"


def test_what_was_left_out_may_turn_out_faster(machine):
    """The two that were close are slower from their tenth round on, as on a machine that gets busy."""
    draw = random.Random(0)
    ways = {"a": 1e-3, "b": 1.01e-3, "left out": 2e-3}
    (times, _), counts = machine(ways, lambda turn: draw.uniform(0.8, 1.2) * (1 if turn < 10 else 4))
    assert counts["a"] == counts["b"] > counts["left out"] == 10  # a first, one, two, one and five
    assert times["left out"] < times["a"]


def test_equal_ways_are_not_timed_for_ever(machine):
    draw = random.Random(0)
    (times, quiet), counts = machine({"a": 1e-3, "b": 1.001e-3}, lambda _: draw.uniform(0.98, 1.02))
    assert abs(times["a"] / times["b"] - 1) < 0.03
    assert quiet
    assert counts["a"] < 40


def test_rounds_that_waited_for_a_cpu_do_not_count(machine):
    draw = random.Random(1)
    waits = lambda: draw.choice((0.0, 0.0, 5e-3))  # noqa: E731
    (times, quiet), _ = machine({"stock": 1e-3, "other": 0.8e-3}, waited=waits)
    assert times == {"stock": 1e-3, "other": 0.8e-3}
    assert quiet


def test_a_busy_machine_is_noticed_within_its_time(machine):
    (_, quiet), counts = machine({"stock": 10e-3, "other": 9e-3}, waited=lambda: 4e-3)
    assert not quiet
    assert sum(counts.values()) * 14e-3 < 2 * autotune.LIMIT


def choose(monkeypatch, times, quiet, ways=("stock", "other")):
    monkeypatch.setattr(autotune, "measure", lambda *_: (times, quiet))
    return autotune.choose("a class", dict.fromkeys(ways), "stock", (X,), (X,))


def test_what_a_busy_machine_shows_is_kept_and_marked(empty_cache, monkeypatch):
    assert choose(monkeypatch, {"stock": 2.0, "other": 1.0}, quiet=False) == "other"
    (path,) = empty_cache.rglob("*.json")
    assert json.loads(path.read_text())["busy"]
    autotune.forget()  # another process
    assert choose(monkeypatch, {"stock": 1.0, "other": 2.0}, quiet=True) == "other"


def test_a_continued_run_computes_as_its_checkpoint_did_whatever_is_kept_now(empty_cache, monkeypatch):
    assert choose(monkeypatch, {"stock": 2.0, "other": 1.0}, quiet=True) == "other"
    checkpoint = autotune.decisions()
    (path,) = empty_cache.rglob("*.json")
    path.unlink()
    autotune.forget()
    assert choose(monkeypatch, {"stock": 1.0, "other": 2.0}, quiet=True) == "stock"  # on disk from here on
    autotune.adopt(checkpoint)
    assert choose(monkeypatch, {}, quiet=True) == "other"


def test_ways_that_are_not_here_are_chosen_anew(monkeypatch):
    choose(monkeypatch, {"stock": 2.0, "other": 1.0}, quiet=True)
    autotune.adopt(dict.fromkeys(autotune.decisions(), "of another machine"))
    assert choose(monkeypatch, {}, quiet=True) == "other"  # the disk's


def test_adopting_what_is_known_forgets_nothing():
    cpu.forward(torch.ones(1, 16, 9, 9), torch.ones(16, 1, 5, 5), None, (1, 1), (2, 2), (1, 1))
    made = dict(cpu._chosen)
    assert made
    autotune.adopt(autotune.decisions())
    assert cpu._chosen == made
    autotune.adopt(dict.fromkeys(autotune.decisions(), "something else"))
    assert cpu._chosen == {}


@pytest.mark.skipif(not autotune._waits(), reason="nobody counts waits for a CPU here")
def test_waits_are_those_of_the_system():
    sample = autotune._sample(lambda x: x + 1, (X,))
    assert sample.seconds > 0
    assert sample.waited >= 0


def test_two_kinds_of_arm_do_not_share_a_name(monkeypatch):
    """Linux tells no model name there."""
    told = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {}\n\nprocessor\t: 1\n"
    names = set()
    for part in ("0xd0c", "0xd40"):
        monkeypatch.setattr(autotune.Path, "read_text", lambda *_, part=part, **__: told.format(part))
        names |= {autotune.processor(), autotune.cpu_name.__wrapped__()}
    assert len(names) == 4
    assert "ARM 0x41 0xd0c" in names


def test_where_linux_tells_nothing_the_processor_has_a_name(monkeypatch):
    monkeypatch.setattr(autotune, "_cpuinfo", dict)
    assert autotune.processor()


def test_a_way_that_another_process_held_up_is_timed_again(monkeypatch):
    samples = iter([autotune.Sample(0.02, 0.019), autotune.Sample(0.001, 0.0), autotune.Sample(0.5, 0.4)])
    monkeypatch.setattr(autotune, "_sample", lambda *_: next(samples))
    assert autotune._undisturbed(torch.relu, ()) == 0.001
    assert autotune._undisturbed(torch.relu, ()) == 0.5, "what takes long is not hopeless by mistake"
