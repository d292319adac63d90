"""What every test shares."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Plans and compiled kernels of a test run stay out of the user's cache, and the user's out of the tests.

    The processes of one run (pytest-xdist) share them: whatever is kept is written whole or not at all. Nothing is
    timed for a plan but in tests of the plan, which have an `empty_cache`: minutes of a suite went into that.
    """
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        patch.setenv("REPLK_CPU_PLAN", "fixed")
        yield
