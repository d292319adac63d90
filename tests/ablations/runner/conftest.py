import pytest

from ablations.runner import scheduler as scheduling
from ablations.runner.train import train


@pytest.fixture
def asked(monkeypatch):
    """What is trained, in order, as (row, seed)."""
    found = []

    def noted(run, *more):
        found.append((run.row.key, run.seed))
        return train(run, *more)

    monkeypatch.setattr(scheduling, "train", noted)
    return found
