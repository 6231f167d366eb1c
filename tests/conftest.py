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

# Seconds until a test counts as hung, by its marker. Many times what the slowest test takes, because a machine can be
# slow; a test that needs more has its own ``@pytest.mark.timeout``.
QUICK_SECONDS, SLOW_SECONDS, VM_SECONDS = 120, 600, 900


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test a time limit, after which it fails with the stacks of its threads; and run the slow tests of a
    module that share a fixture, such as a server, in one process, which starts it once."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group") and _shares_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
        if item.get_closest_marker("timeout") is None:
            slow = SLOW_SECONDS if item.get_closest_marker("slow") else QUICK_SECONDS
            item.add_marker(pytest.mark.timeout(VM_SECONDS if item.get_closest_marker("vm") else slow))


def _shares_fixtures(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(one.scope == "module" for known in definitions for one in known)


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


@pytest.fixture(scope="session", autouse=True)
def own_registry() -> Iterator[None]:
    """Servers of tests share cores: several run at a time on a small machine, next to those of other sessions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUNCH_REGISTRY", "off")
        yield
