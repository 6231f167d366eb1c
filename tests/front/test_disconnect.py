"""A wait on behalf of a client ends when the client disconnects."""

from __future__ import annotations

import asyncio

import pytest

from launcher.front.http.disconnect import EXTENSION, Client, ClientDisconnected, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def client() -> Client:
    return Client()


def pending() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def test_the_wait_ends_with_the_result_and_leaves_no_task(client: Client) -> None:
    future = pending()
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(client.wait(future))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before | {task}
    future.set_result(5)
    assert await task == 5


async def test_the_wait_ends_when_the_client_disconnects(client: Client) -> None:
    future = pending()
    task = asyncio.ensure_future(client.wait(future))
    await asyncio.sleep(0)
    client.disconnected()
    with pytest.raises(ClientDisconnected):
        await task
    assert future.cancelled()


async def test_nothing_is_awaited_for_a_client_that_has_disconnected(client: Client) -> None:
    client.disconnected()
    future = pending()
    with pytest.raises(ClientDisconnected):
        await client.wait(future)
    assert future.cancelled()


async def test_a_result_that_is_set_before_the_client_disconnects_is_returned(client: Client) -> None:
    future = pending()
    task = asyncio.ensure_future(client.wait(future))
    await asyncio.sleep(0)
    future.set_result(5)
    client.disconnected()
    assert await task == 5


async def test_cancellation_by_the_server_is_not_reported_as_a_disconnect(
    client: Client,
) -> None:
    future = pending()
    task = asyncio.ensure_future(client.wait(future))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.cancelled()


async def test_an_exception_of_the_future_is_raised(client: Client) -> None:
    future = pending()
    future.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await client.wait(future)


async def test_the_current_wait_is_the_one_that_ends_when_the_client_disconnects(client: Client) -> None:
    first, second = pending(), pending()
    task = asyncio.ensure_future(client.wait(first))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    task = asyncio.ensure_future(client.wait(second))
    await asyncio.sleep(0)
    client.disconnected()
    with pytest.raises(ClientDisconnected):
        await task
    assert second.cancelled()


def test_the_client_is_that_of_the_connection() -> None:
    client = Client()
    assert client_of({"extensions": {EXTENSION: client}}) is client
    assert client_of({}) is not client_of({"extensions": {}})
