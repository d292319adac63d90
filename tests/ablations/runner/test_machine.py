import torch

from ablations.records.provenance import hardware
from ablations.runner.machine import Machine


def test_auto_is_an_nvidia_gpu_or_the_cpu_and_another_accelerator_is_named_in_records(monkeypatch):
    """Lightning's auto is MPS on a Mac, where the records would have said CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Machine().trainer_options()["accelerator"] == "cpu"
    assert Machine("mps").trainer_options()["accelerator"] == "mps"
    assert hardware.__wrapped__("mps").endswith(", MPS")
