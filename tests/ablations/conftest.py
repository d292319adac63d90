import pytest
from forks import Forks


@pytest.fixture(scope="session")
def forks():
    server = Forks()
    yield server
    server.close()
