"""A wait for a client ends when the client leaves, and only then as if it had left."""

from __future__ import annotations

import asyncio

import pytest

from launcher.front.http.disconnect import EXTENSION, ClientGone, DisconnectWatch, disconnect_watch_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def disconnect() -> DisconnectWatch:
    return DisconnectWatch()


def pending() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def test_the_wait_ends_with_the_result_and_leaves_no_task(disconnect: DisconnectWatch) -> None:
    future = pending()
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(disconnect.wait(future))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before | {task}
    future.set_result(5)
    assert await task == 5


async def test_the_wait_ends_when_the_client_leaves(disconnect: DisconnectWatch) -> None:
    future = pending()
    task = asyncio.ensure_future(disconnect.wait(future))
    await asyncio.sleep(0)
    disconnect.leave()
    with pytest.raises(ClientGone):
        await task
    assert future.cancelled()


async def test_nothing_is_awaited_for_a_client_that_has_left(disconnect: DisconnectWatch) -> None:
    disconnect.leave()
    future = pending()
    with pytest.raises(ClientGone):
        await disconnect.wait(future)
    assert future.cancelled()


async def test_what_is_there_when_the_client_leaves_is_given(disconnect: DisconnectWatch) -> None:
    future = pending()
    task = asyncio.ensure_future(disconnect.wait(future))
    await asyncio.sleep(0)
    future.set_result(5)
    disconnect.leave()
    assert await task == 5


async def test_a_wait_that_is_cancelled_by_the_server_is_not_taken_for_a_client_that_left(
    disconnect: DisconnectWatch,
) -> None:
    future = pending()
    task = asyncio.ensure_future(disconnect.wait(future))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.cancelled()


async def test_a_failure_of_the_future_is_raised(disconnect: DisconnectWatch) -> None:
    future = pending()
    future.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await disconnect.wait(future)


async def test_a_wait_after_another_is_the_one_that_ends_when_the_client_leaves(disconnect: DisconnectWatch) -> None:
    first, second = pending(), pending()
    task = asyncio.ensure_future(disconnect.wait(first))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    task = asyncio.ensure_future(disconnect.wait(second))
    await asyncio.sleep(0)
    disconnect.leave()
    with pytest.raises(ClientGone):
        await task
    assert second.cancelled()


def test_the_presence_is_that_of_the_connection() -> None:
    disconnect = DisconnectWatch()
    assert disconnect_watch_of({"extensions": {EXTENSION: disconnect}}) is disconnect
    assert disconnect_watch_of({}) is not disconnect_watch_of({"extensions": {}})
