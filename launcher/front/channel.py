"""The channel to one worker: a connected socket frames out, messages in, and a single report of its end.

Separate from the dispatcher so that everything that can go wrong with a stream (EOF, reset, invalid data, a partial
frame) is reported in one way: the channel is lost, for this reason. The meaning of messages does not belong here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from launcher.core.protocol.frames import Buffer, FrameError, encode, to_front_decoder
from launcher.core.protocol.messages import ToFront, ToWorker

# How the reason of a loss begins if the process has ended; how it ended says more.
CLOSED = "the worker closed its connection"
FAILED = "the connection to the worker failed"


class Channel(asyncio.Protocol):
    """Calls ``on_message(message, body)`` for each message of the worker and finally ``on_lost(reason)``, once.

    ``on_lost`` is called from the event loop and never from within ``send`` or ``fail``, so that the dispatcher is not
    re-entered while it carries out actions. If received data ends the channel, ``on_lost`` is called immediately, so
    that nothing more is assigned to a lost worker. The write buffer is not limited here: the scheduler never has more
    than a running and a ready batch at a worker.
    """

    def __init__(self, on_message: Callable[[ToFront, bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder = to_front_decoder()
        self._transport: asyncio.WriteTransport | None = None
        self._reason: str | None = None
        self._reported = False

    async def connect(self, sock: socket.socket) -> None:
        """Take ownership of ``sock``, a connected Unix stream socket, and start."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    @property
    def open(self) -> bool:
        """Whether the channel is connected and has not failed."""
        return self._transport is not None and self._reason is None

    def send(self, message: ToWorker, body: Buffer = b"") -> None:
        """Write one frame; ``body`` is not copied here. Does nothing if the channel is lost."""
        if self._transport is not None and self._reason is None:
            self._transport.writelines(encode(message, body))

    def fail(self, reason: str) -> None:
        """Close immediately with ``reason``; messages in transit are not delivered."""
        if self._reason is None:
            self._reason = reason
            if self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.WriteTransport, transport)
        if self._reason is not None:  # failed while it was being connected
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._reason is None:
            self._deliver(data)
            self._report()

    def _deliver(self, data: bytes) -> None:
        try:
            for message, body in self._decoder.feed(data):
                self._on_message(message, body)
                if not self.open:
                    return
        except FrameError as error:
            self.fail(f"the worker sent invalid data: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, once."""
        self._transport = None
        if self._reason is None:
            self._reason = self._describe_end(exc)
        self._report()

    def _report(self) -> None:
        if self._reason is not None and not self._reported:
            self._reported = True
            self._on_lost(self._reason)

    def _describe_end(self, exc: Exception | None) -> str:
        if exc is not None:
            return f"{FAILED}: {exc}"
        if self._decoder.pending:
            return f"{CLOSED} after {self._decoder.pending} bytes of a message"
        return CLOSED
