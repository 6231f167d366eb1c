"""Whatever happens to the stream, the channel reports its loss once, with the reason."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from launcher.core.protocol.frames import PREFIX, encode
from launcher.core.protocol.messages import Loading, Stop
from launcher.front.channel import Channel

pytestmark = pytest.mark.anyio


class Ends:
    """A channel, what it reported, and the other end of its socket."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, bytes]] = []
        self.reasons: list[str] = []
        self.channel = Channel(lambda message, body: self.messages.append((message, body)), self.reasons.append)

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        await self.channel.connect(ours)
        return theirs


def frame(message: Any, body: bytes = b"") -> bytes:
    return b"".join(bytes(part) for part in encode(message, body))


async def test_messages_arrive_in_order_however_the_stream_is_split(until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    stream = b"".join(frame(Loading("load", step / 10), bytes(step)) for step in range(10))
    for start in range(0, len(stream), 7):
        await asyncio.get_running_loop().sock_sendall(theirs, stream[start : start + 7])
    await until(lambda: len(ends.messages) == 10)
    assert [(message.done, len(body)) for message, body in ends.messages] == [(s / 10, s) for s in range(10)]
    theirs.close()
    await until(lambda: bool(ends.reasons))


async def test_the_end_of_the_stream_is_the_end_of_the_channel(until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    assert ends.channel.open
    theirs.close()
    await until(lambda: bool(ends.reasons))
    assert ends.reasons == ["the worker closed its connection"]
    assert not ends.channel.open
    ends.channel.send(Stop())  # to a closed channel: no error


async def test_eof_inside_a_message_is_reported(until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    await asyncio.get_running_loop().sock_sendall(theirs, frame(Loading("load", 0.5))[:-3])
    theirs.close()
    await until(lambda: bool(ends.reasons))
    assert "bytes of a message" in ends.reasons[0]


GARBAGE = {
    "text": b"Traceback (most recent call last):\n",
    "not msgpack": PREFIX.pack(5, 0) + b"\xc1\xc1\xc1\xc1\xc1",
    "no head": PREFIX.pack(0, 0),
    "a message of the other direction": frame(Stop()),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_invalid_data_ends_the_channel_and_nothing_more_is_delivered(garbage: bytes, until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    await asyncio.get_running_loop().sock_sendall(theirs, garbage + frame(Loading("load", 0.5)))
    await until(lambda: bool(ends.reasons))
    assert len(ends.reasons) == 1
    assert ends.reasons[0].startswith("the worker sent invalid data")
    assert ends.messages == []
    theirs.close()


async def test_a_failed_channel_reports_later_and_delivers_nothing_more(until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    ends.channel.fail("it lies")
    assert ends.reasons == []  # the caller has not returned yet
    ends.channel.fail("again")
    await until(lambda: bool(ends.reasons))
    assert ends.reasons == ["it lies"]
    theirs.close()


async def test_a_channel_that_fails_while_it_connects_is_closed(until: Any) -> None:
    ends = Ends()
    connecting = asyncio.ensure_future(ends.connect())
    ends.channel.fail("not wanted any more")
    theirs = await connecting
    await until(lambda: bool(ends.reasons))
    assert ends.reasons == ["not wanted any more"]
    assert theirs.recv(10) == b""
    theirs.close()


async def test_a_message_handler_that_fails_the_channel_gets_no_second_message(until: Any) -> None:
    ends = Ends()
    received: list[Any] = []

    def refuse(message: Any, body: bytes) -> None:
        received.append(message)
        channel.fail("not wanted")

    channel = Channel(refuse, ends.reasons.append)
    ours, theirs = socket.socketpair()
    await channel.connect(ours)
    theirs.sendall(frame(Loading("load", 0.1)) + frame(Loading("load", 0.2)))
    await until(lambda: bool(ends.reasons))
    assert len(received) == 1
    theirs.close()


@pytest.mark.parametrize("garbage", [True, False])
async def test_the_end_caused_by_data_is_reported_with_the_data_and_once(garbage: bool, until: Any) -> None:
    told: list[str] = []

    def refuse(message: Any, body: bytes) -> None:
        channel.fail("not wanted")
        assert told == []  # the handler has not returned yet

    channel = Channel(refuse, told.append)
    ours, theirs = socket.socketpair()
    await channel.connect(ours)
    channel.data_received(GARBAGE["text"] if garbage else frame(Loading("load", 0.1)))
    assert len(told) == 1
    await until(lambda: channel._transport is None)  # the connection is lost now, too
    assert len(told) == 1
    theirs.close()


async def test_a_worker_that_does_not_read_does_not_block_the_loop(until: Any) -> None:
    ends = Ends()
    theirs = await ends.connect()
    ends.channel.send(Stop(), bytes(8 * 1024 * 1024))  # far more than the socket buffers; a blocked call never returns
    await asyncio.sleep(0)
    assert ends.channel._transport is not None
    assert ends.channel._transport.get_write_buffer_size() > 0
    ends.channel.fail("enough")
    await until(lambda: bool(ends.reasons))
    theirs.close()
