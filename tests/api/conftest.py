"""Engines with real workers; costs of test backends are kept out of the user's cache."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from launcher import Engine

FAKE: dict[str, Any] = {"backend": "fake", "instances": 2, "oversubscribe": True, "reserve_cores": 0}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Two instances whose vectors depend on the tokens alone."""
    with Engine("random:tiny", **FAKE) as engine:
        yield engine


def worker_pids(info: dict[str, Any]) -> list[int]:
    """The worker processes of an engine, according to its ``info()``."""
    return [entry["pid"] for entry in info["instances"]]


def kill_permanently(info: Callable[[], dict[str, Any]]) -> None:
    """Kill every worker of an engine with ``max_failures=1`` until its instances have failed permanently."""
    deadline = time.monotonic() + 20
    while any(entry["state"] != "failed" for entry in info()["instances"]):
        assert time.monotonic() < deadline, info()
        for pid in filter(None, worker_pids(info())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children() -> set[int]:
    """The worker processes of this process."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if "launcher.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found
