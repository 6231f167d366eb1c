"""The timer never expires early, and leaves no descriptor when it is closed."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from launcher.bench.timerfd import TimerFd

pytestmark = pytest.mark.anyio


async def test_it_never_expires_early() -> None:
    late = []
    async with TimerFd() as timer:
        for step in range(200):
            moment = time.monotonic() + step * 1e-5
            await timer.until(moment)
            late.append(time.monotonic() - moment)
    assert min(late) >= 0


async def test_a_past_moment_returns_at_once() -> None:
    async with TimerFd() as timer:
        with anyio.fail_after(60):
            await timer.until(time.monotonic() - 600)
            await timer.until(0.0)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_it_leaves_no_descriptor() -> None:
    before = descriptors()
    for _ in range(5):
        async with TimerFd() as timer:
            await timer.until(time.monotonic() + 1e-4)
    assert descriptors() == before
