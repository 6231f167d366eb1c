"""The dispatcher with the shipped worker process and its fake backend."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from launcher.worker.backends.fake import fake_result

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
async def spawn() -> AsyncIterator[Any]:
    """Starts the worker of an instance of a front."""
    processes: list[subprocess.Popen[bytes]] = []

    async def spawn_(front: Any, instance: int) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "launcher.worker", "--instance", str(instance), "--threads", "1"]
        processes.append(subprocess.Popen(command, stdin=theirs.fileno()))  # noqa: ASYNC220  # a test may block
        theirs.close()
        await front.dispatcher.attach(instance, ours, front.setup)
        return processes[-1]

    yield spawn_
    for process in processes:
        process.kill()
        process.wait()


async def test_a_real_worker_computes_dies_and_is_replaced(
    make_front: Any, model_info: Any, spawn: Any, until: Any
) -> None:
    front = make_front(2)
    front.setup = msgspec.structs.replace(front.setup, fake_seconds_per_token=1e-4)
    first = await spawn(front, 0)
    await front.listener.wait("ready", 0)
    items = [np.arange(4, 5 + index % 12, dtype=np.int32) for index in range(200)]
    expected = [fake_result(item, model_info) for item in items]

    outcome = await front.dispatcher.enqueue(items)
    np.testing.assert_array_equal(outcome.results, expected)
    assert outcome.compute_seconds >= 1e-4 * sum(map(len, items)) * 0.9

    waiting = front.dispatcher.enqueue(items)
    await asyncio.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    await front.listener.wait("lost", 0)
    assert not waiting.done()
    await spawn(front, 1)
    np.testing.assert_array_equal((await waiting).results, expected)

    front.dispatcher.stop_workers()
    assert await front.listener.wait("lost", 1) == "stopped as requested"
