import os

import pytest
from forks import Forks


@pytest.fixture(scope="session")
def forks():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    server = Forks()
    yield server
    server.close()
