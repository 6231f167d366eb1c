"""Fixtures of the end-to-end tests."""

import pytest

from tests.e2e.running import Launch, running


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Start a server: ``with launch("--instances", "2") as server``."""
    return running
