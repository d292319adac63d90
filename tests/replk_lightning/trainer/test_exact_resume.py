import random

import numpy as np
import torch

from replk_lightning.trainer.resume import ExactResume, TrainingClock, random_state, restore_random_state


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def test_the_state_of_every_generator_comes_back(tmp_path):
    torch.manual_seed(1)
    torch.save(random_state(), tmp_path / "state.pt")
    first = draw()
    assert draw() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


def test_the_callback_keeps_the_state_with_the_checkpoint():
    state = ExactResume().state_dict()
    first = draw()
    ExactResume().load_state_dict(state)
    assert draw() == first


def test_the_clock_adds_the_parts_of_an_interrupted_run():
    clock = TrainingClock()
    clock.load_state_dict({"seconds": 100.0})
    clock.on_fit_start(None, None)
    clock.on_fit_end(None, None)
    assert 100.0 <= clock.seconds < 101.0
