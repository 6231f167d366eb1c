"""Bodies are read within their limits, and clients that disconnect are noticed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from launcher.front.http.body_reader import BodyMemory, BodyMemoryFull, BodyReader, BodyTooLarge
from launcher.front.http.disconnect import ClientDisconnected
from launcher.front.http.responses import LARGE_RESPONSE_BYTES, send_json

pytestmark = pytest.mark.anyio


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": pairs}


def receiver(*messages: Any) -> Any:
    """Returns the messages in order, then waits forever."""
    left = list(messages)

    async def receive() -> Any:
        if left:
            return left.pop(0)
        return await asyncio.get_running_loop().create_future()

    return receive


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


async def test_a_body_counts_as_held_in_memory_until_it_is_released() -> None:
    memory = BodyMemory(1000)
    reader = BodyReader(100, memory)
    body = await reader.read(scope(content_length="6"), receiver(part(b"abc"), part(b"def", more=False)))
    assert body == b"abcdef"
    assert memory.used == 6
    reader.release(body)
    assert memory.used == 0


async def test_bodies_that_exceed_the_memory_together_are_refused_with_429() -> None:
    memory = BodyMemory(250)
    reader = BodyReader(100, memory)
    bodies = [await reader.read(scope(content_length="100"), receiver(part(b"x" * 100, more=False))) for _ in range(2)]
    with pytest.raises(BodyMemoryFull, match="responses in memory have 240 bytes, the limit is 250") as error:
        await reader.read(scope(content_length="100"), receiver(part(b"x" * 40), part(b"x" * 20)))
    assert (error.value.status, error.value.retry_after) == (429, 1.0)
    with pytest.raises(BodyMemoryFull):
        await reader.read(scope(transfer_encoding="chunked"), receiver(part(b"x" * 51, more=False)))
    assert await reader.read(scope(content_length="50"), receiver(part(b"x" * 50, more=False)))
    reader.release(bodies[0])
    assert await reader.read(scope(transfer_encoding="chunked"), receiver(part(b"y", more=False))) == b"y"
    assert memory.used == 151


async def test_announced_bodies_that_do_not_arrive_take_no_memory() -> None:
    memory = BodyMemory(100)
    reader = BodyReader(100, memory)
    heads = [scope(content_length="100"), scope(transfer_encoding="chunked")] * 16
    idle = [asyncio.ensure_future(reader.read(head, receiver(part(b"x")))) for head in heads]
    await asyncio.sleep(0)
    assert memory.used == 32
    assert await reader.read(scope(content_length="60"), receiver(part(b"y" * 60, more=False)))
    for task in idle:
        task.cancel()
    await asyncio.gather(*idle, return_exceptions=True)
    assert memory.used == 60


@pytest.mark.parametrize(
    ("headers", "messages", "error"),
    [
        ({"content_length": "101"}, [], BodyTooLarge),
        ({"transfer_encoding": "chunked"}, [part(b"x" * 60), part(b"x" * 60)], BodyTooLarge),
        ({"content_length": "5"}, [part(b"x" * 101, more=False)], BodyTooLarge),
        ({"content_length": "50"}, [part(b"x" * 20), GONE], ClientDisconnected),
        ({"content_length": "50"}, [GONE], ClientDisconnected),
    ],
)
async def test_an_incomplete_body_leaves_nothing_in_memory(headers: Any, messages: Any, error: Any) -> None:
    memory = BodyMemory(1000)
    reader = BodyReader(100, memory)
    with pytest.raises(error):
        await reader.read(scope(**headers), receiver(*messages))
    assert memory.used == 0


async def test_a_reader_that_is_cancelled_leaves_nothing_in_memory() -> None:
    memory = BodyMemory(1000)
    reader = BodyReader(100, memory)
    task = asyncio.ensure_future(reader.read(scope(content_length="50"), receiver(part(b"x"))))
    await asyncio.sleep(0)
    assert memory.used == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert memory.used == 0


@pytest.mark.parametrize("size", [10, LARGE_RESPONSE_BYTES + 1])
async def test_a_large_response_counts_as_held_in_memory_until_it_is_sent(size: int) -> None:
    memory = BodyMemory(1000)
    taken = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        if len(sent) == 2:
            await taken.wait()  # as uvicorn does when its buffer is full
        sent.append(message)

    task = asyncio.ensure_future(send_json(memory, send, 200, b"x" * size, [(b"x-more", b"1")]))
    await asyncio.sleep(0)
    assert memory.used == (size if size > LARGE_RESPONSE_BYTES else 0)
    taken.set()
    await task
    assert memory.used == 0
    assert sent[0]["headers"] == [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % size),
        (b"x-more", b"1"),
    ]
    assert b"".join(message["body"] for message in sent[1:]) == b"x" * size
    assert [message.get("more_body", False) for message in sent[1:]][-1] is False
