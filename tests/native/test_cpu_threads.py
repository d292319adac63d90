import os
import runpy
from pathlib import Path

import pytest
import torch

from native import cpu_threads


def test_it_needs_nothing_of_systems_that_fork(monkeypatch):
    """Windows' `os` lacks what is for forks, and its torch has no GNU OpenMP."""
    monkeypatch.delattr(os, "register_at_fork")
    module = runpy.run_path(cpu_threads.__file__)
    monkeypatch.setitem(module["in_parallel"].__globals__, "_openmp", lambda: None)
    done = []
    module["in_parallel"](done.append, 3)
    assert sorted(done) == [0, 1, 2]


def test_torchs_openmp_is_found_beside_torch_too(tmp_path, monkeypatch):
    """Wheels for ARM hold their libraries in torch.libs."""
    found = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
    if found is None:
        pytest.skip("this torch has no GNU OpenMP")
    for folder in ("torch", "torch.libs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "torch.libs" / found.name).symlink_to(found)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    assert cpu_threads._openmp.__wrapped__() is not None
