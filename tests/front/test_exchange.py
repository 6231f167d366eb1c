"""Reading bodies within their bounds, and noticing clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from launcher.front.http.disconnect import ClientGone
from launcher.front.http.exchange import COUNTED_BYTES, BodyTooLarge, Intake, Overfull

pytestmark = pytest.mark.anyio


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": pairs}


def receiver(*messages: Any) -> Any:
    """Gives the messages one after the other, then nothing more."""
    left = list(messages)

    async def receive() -> Any:
        if left:
            return left.pop(0)
        return await asyncio.get_running_loop().create_future()

    return receive


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


async def test_a_body_counts_as_inside_until_it_is_released() -> None:
    intake = Intake(100, 1000)
    body = await intake.read(scope(content_length="6"), receiver(part(b"abc"), part(b"def", more=False)))
    assert body == b"abcdef"
    assert intake.inside == 6
    intake.release(body)
    assert intake.inside == 0


async def test_bodies_that_are_too_much_together_are_refused_for_now() -> None:
    intake = Intake(100, 250)
    bodies = [await intake.read(scope(content_length="100"), receiver(part(b"x" * 100, more=False))) for _ in range(2)]
    with pytest.raises(Overfull, match="bodies and replies inside have 240 bytes, the limit is 250") as error:
        await intake.read(scope(content_length="100"), receiver(part(b"x" * 40), part(b"x" * 20)))
    assert (error.value.status, error.value.retry_after) == (429, 1.0)
    with pytest.raises(Overfull):
        await intake.read(scope(transfer_encoding="chunked"), receiver(part(b"x" * 51, more=False)))
    assert await intake.read(scope(content_length="50"), receiver(part(b"x" * 50, more=False)))
    intake.release(bodies[0])
    assert await intake.read(scope(transfer_encoding="chunked"), receiver(part(b"y", more=False))) == b"y"
    assert intake.inside == 151


async def test_bodies_that_are_announced_and_do_not_come_take_no_room() -> None:
    intake = Intake(100, 100)
    heads = [scope(content_length="100"), scope(transfer_encoding="chunked")] * 16
    idle = [asyncio.ensure_future(intake.read(head, receiver(part(b"x")))) for head in heads]
    await asyncio.sleep(0)
    assert intake.inside == 32
    assert await intake.read(scope(content_length="60"), receiver(part(b"y" * 60, more=False)))
    for task in idle:
        task.cancel()
    await asyncio.gather(*idle, return_exceptions=True)
    assert intake.inside == 60


@pytest.mark.parametrize(
    ("headers", "messages", "error"),
    [
        ({"content_length": "101"}, [], BodyTooLarge),
        ({"transfer_encoding": "chunked"}, [part(b"x" * 60), part(b"x" * 60)], BodyTooLarge),
        ({"content_length": "5"}, [part(b"x" * 101, more=False)], BodyTooLarge),
        ({"content_length": "50"}, [part(b"x" * 20), GONE], ClientGone),
        ({"content_length": "50"}, [GONE], ClientGone),
    ],
)
async def test_a_body_that_does_not_come_whole_leaves_nothing_inside(headers: Any, messages: Any, error: Any) -> None:
    intake = Intake(100, 1000)
    with pytest.raises(error):
        await intake.read(scope(**headers), receiver(*messages))
    assert intake.inside == 0


async def test_a_reader_that_is_cancelled_leaves_nothing_inside() -> None:
    intake = Intake(100, 1000)
    task = asyncio.ensure_future(intake.read(scope(content_length="50"), receiver(part(b"x"))))
    await asyncio.sleep(0)
    assert intake.inside == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert intake.inside == 0


@pytest.mark.parametrize("size", [10, COUNTED_BYTES + 1])
async def test_a_large_reply_counts_as_inside_until_the_client_has_taken_it(size: int) -> None:
    intake = Intake(100, 1000)
    taken = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        if len(sent) == 2:
            await taken.wait()  # as uvicorn does when its buffer is full
        sent.append(message)

    task = asyncio.ensure_future(intake.reply(send, 200, b"x" * size, [(b"x-more", b"1")]))
    await asyncio.sleep(0)
    assert intake.inside == (size if size > COUNTED_BYTES else 0)
    taken.set()
    await task
    assert intake.inside == 0
    assert sent[0]["headers"] == [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % size),
        (b"x-more", b"1"),
    ]
    assert b"".join(message["body"] for message in sent[1:]) == b"x" * size
    assert [message.get("more_body", False) for message in sent[1:]][-1] is False
