"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run, so that a run judges the change and not the seed. HYPOTHESIS_PROFILE=explore searches
# for new ones.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session", autouse=True)
def default_signals_in_children() -> Iterator[None]:
    """Processes that tests start have default signal dispositions, even if the tests run under ``nohup … &``.

    exec(2) resets a signal with a handler to its default and leaves an ignored one ignored. So ignored signals get a
    handler that does nothing.
    """
    ignored = [
        number
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
