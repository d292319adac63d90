import pytest
import torch
from process_states import STATES

from replk_lightning.measure.latency import depthwise_share, medians, throughput, training_seconds


def test_nets_are_timed_side_by_side():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    rates = throughput({"ours": ("replknet_3", 32, tiny), "baseline": ("resnet10t", 32, {})}, batch_size=1, rounds=1)
    assert set(rates) == {"ours", "baseline"}
    assert all(rate > 0 for rate in rates.values())


def test_depthwise_layers_take_some_of_the_time():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    for stock in (False, True):
        assert 0 < depthwise_share("replknet_31b", 64, 1, stock=stock, rounds=1, **tiny) < 100


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert set(medians(steps, 2, torch.device("cpu"))) == {"a", "b"}
    assert calls == ["a", "b"] * 3


def test_a_training_step_is_timed():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    assert training_seconds({"net": ("replknet_3", 64, tiny)}, rounds=1)["net"] > 0


@pytest.mark.parametrize("state", STATES)
def test_timings_are_of_float32_whatever_the_state_of_the_process(state):
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    job = {"ours": ("replknet_3", 64, tiny)}
    with STATES[state]():
        assert throughput(job, batch_size=1, rounds=1, device=torch.device("cpu"))["ours"] > 0
        assert training_seconds(job, rounds=1, device=torch.device("cpu"))["ours"] > 0
