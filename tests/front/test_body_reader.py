"""Bodies are read within their limits, and clients that disconnect are noticed."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio
import pytest

from launcher.front.http.body_reader import (
    SMALL_BYTES,
    BodyMemory,
    BodyMemoryFull,
    BodyReader,
    BodyTooLarge,
    UploadTooSlow,
    content_length,
)
from launcher.front.http.disconnect import ClientDisconnected
from launcher.front.http.responses import LARGE_RESPONSE_BYTES, send_json
from launcher.options import FrontOptions

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


def make_reader(memory: BodyMemory, body_bytes: int = 100, **options: Any) -> BodyReader:
    return BodyReader(FrontOptions(body_bytes=body_bytes, **options), memory)


async def test_a_body_counts_as_held_in_memory_until_it_is_released() -> None:
    memory = BodyMemory(1000, 100)
    reader = make_reader(memory)
    body = await reader.read(scope(content_length="6"), receiver(part(b"abc"), part(b"def", more=False)), "a")
    assert body == b"abcdef"
    assert memory.used == 6
    reader.release(body, "a")
    assert memory.used == 0


async def test_bodies_that_exceed_the_memory_together_are_refused_with_429() -> None:
    memory = BodyMemory(280, 100)  # of which 35 are for small bodies
    reader = make_reader(memory)
    body = await reader.read(scope(content_length="100"), receiver(part(b"x" * 100, more=False)), "a")
    await reader.read(scope(content_length="100"), receiver(part(b"x" * 100, more=False)), "b")
    with pytest.raises(BodyMemoryFull, match="responses in memory have 240 bytes, the limit is 245") as error:
        await reader.read(scope(content_length="100"), receiver(part(b"x" * 40), part(b"x" * 20)), "c")
    assert (error.value.status, error.value.retry_after) == (429, 1.0)
    with pytest.raises(BodyMemoryFull):
        await reader.read(scope(transfer_encoding="chunked"), receiver(part(b"x" * 46, more=False)), "c")
    assert await reader.read(scope(content_length="45"), receiver(part(b"x" * 45, more=False)), "c")
    reader.release(body, "a")
    assert await reader.read(scope(transfer_encoding="chunked"), receiver(part(b"x" * 99, more=False)), "d")
    assert memory.used == 244


async def test_a_client_may_hold_half_of_what_others_leave_and_always_one_body() -> None:
    memory = BodyMemory(8000, 2000)  # of which 1,000 are for small bodies, of up to 125 bytes
    reader = make_reader(memory, 2000)

    async def held(client: str, size: int) -> int:
        """How many bodies of this size the client can have in memory."""
        for count in range(100):
            try:
                await reader.read(scope(), receiver(part(b"x" * size, more=False)), client)
            except BodyMemoryFull:
                return count
        raise AssertionError("no limit")

    assert await held("greedy", 500) == 7, "half of 7,000 bytes"
    assert await held("second", 500) == 4, "the least, which is more than half of the rest"
    assert await held("third", 1500) == 1
    assert await held("fourth", 126) == 0
    assert await held("fourth", 125) == 4, "half of the part for small bodies"
    assert await held("greedy", 125) == 2, "half of what is left of it"


async def test_a_body_that_grows_beyond_a_small_one_leaves_their_part_of_the_memory() -> None:
    memory = BodyMemory(8000, 2000)
    reader = make_reader(memory, 2000)
    body = await reader.read(scope(), receiver(part(b"x" * 100), part(b"x" * 100), part(b"", more=False)), "a")
    assert (memory._small.used, memory._large.used) == (0, 200)
    reader.release(body, "a")
    assert memory.used == 0
    assert BodyMemory(1 << 28, 1 << 23).small_bytes == SMALL_BYTES


async def test_a_body_that_arrives_too_slowly_is_refused_with_408_and_leaves_nothing() -> None:
    memory = BodyMemory(1000, 100)
    reader = make_reader(memory, min_upload_rate=100, upload_window_seconds=0.1)
    with pytest.raises(UploadTooSlow) as error:
        await reader.read(scope(content_length="90"), receiver(part(b"x" * 9), part(b"x" * 8)), "a")
    assert (error.value.status, error.value.code) == (408, "upload_too_slow")
    assert "17 bytes of the body" in str(error.value)
    assert memory.used == 0


@pytest.mark.parametrize(("size", "extended"), [(2, False), (3, True)])
async def test_the_time_for_a_body_is_extended_when_enough_of_it_arrives(size: int, extended: bool) -> None:
    reader = make_reader(BodyMemory(1000, 100), min_upload_rate=1, upload_window_seconds=3.0)
    window = anyio.CancelScope()
    more = receiver(part(b"", more=False))
    await reader._read_parts(part(b"x" * size), more, "a", bytearray(), window)
    assert (window.deadline < math.inf) is extended


async def test_announced_bodies_that_do_not_arrive_take_no_memory() -> None:
    memory = BodyMemory(10_000, 100)
    reader = make_reader(memory)
    heads = [scope(content_length="100"), scope(transfer_encoding="chunked")] * 16
    idle = [asyncio.ensure_future(reader.read(head, receiver(part(b"x")), "a")) for head in heads]
    await asyncio.sleep(0)
    assert memory.used == 32
    assert await reader.read(scope(content_length="60"), receiver(part(b"y" * 60, more=False)), "a")
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
    memory = BodyMemory(1000, 100)
    reader = make_reader(memory)
    with pytest.raises(error):
        await reader.read(scope(**headers), receiver(*messages), "a")
    assert memory.used == 0


async def test_a_reader_that_is_cancelled_leaves_nothing_in_memory() -> None:
    memory = BodyMemory(1000, 100)
    reader = make_reader(memory)
    task = asyncio.ensure_future(reader.read(scope(content_length="50"), receiver(part(b"x")), "a"))
    await asyncio.sleep(0)
    assert memory.used == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert memory.used == 0


@pytest.mark.parametrize("size", [10, LARGE_RESPONSE_BYTES + 1])
async def test_a_large_response_counts_as_held_in_memory_until_it_is_sent(size: int) -> None:
    memory = BodyMemory(1000, 100)
    taken = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        if len(sent) == 2:
            await taken.wait()  # as uvicorn does when its buffer is full
        sent.append(message)

    task = asyncio.ensure_future(send_json(memory, "a", send, 200, b"x" * size, [(b"x-more", b"1")]))
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


def test_lengths_have_64_bits_and_any_number_of_zeros() -> None:
    assert content_length(b"0" * 5000 + b"17 \t") == 17
    assert content_length(b"%d" % (2**64 - 1)) == 2**64 - 1
    assert content_length(b"0" * 5000) == 0
