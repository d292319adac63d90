"""What tests of the operator share."""

import pytest

from native import autotune


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A fresh place for the choices of the CPU plan, and none of them in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REPLK_CPU_PLAN", raising=False)
    autotune.forget()
    yield tmp_path
    autotune.forget()
