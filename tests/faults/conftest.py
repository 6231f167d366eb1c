"""Fixtures of the tests of failure modes: real servers, as in the end-to-end tests."""

from tests.e2e.conftest import launch, own_cache

__all__ = ["launch", "own_cache"]
