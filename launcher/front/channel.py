"""One connected socket to one worker: frames out, messages in, and one report of its end.

Separate from the dispatcher so that everything which can go wrong with a stream (end of file, reset, garbage, half
a frame) becomes one thing there: the channel is lost, for this reason. What messages mean must not enter here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from launcher.core.protocol.frames import Buffer, FrameError, encode, to_front_decoder
from launcher.core.protocol.messages import ToFront, ToWorker


class Channel(asyncio.Protocol):
    """Calls ``on_message(message, body)`` for each message of the worker and at last ``on_lost(reason)``, once.

    ``on_lost`` is called from the event loop, never from within ``send`` or ``fail``, so that the dispatcher is not
    entered while it is still carrying out what it decided before. Where data brought the end, it is called before
    anything else can happen, so that nothing more is decided for a worker that is lost. Nothing limits the write
    buffer here: the scheduler never has more than a running and a ready batch at a worker, which bounds it.
    """

    def __init__(self, on_message: Callable[[ToFront, bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder = to_front_decoder()
        self._transport: asyncio.WriteTransport | None = None
        self._reason: str | None = None
        self._reported = False

    async def connect(self, sock: socket.socket) -> None:
        """Start on ``sock``, a connected Unix stream socket, which belongs to the channel from now on."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    @property
    def open(self) -> bool:
        """Whether messages still go through."""
        return self._transport is not None and self._reason is None

    def send(self, message: ToWorker, body: Buffer = b"") -> None:
        """Write one frame; ``body`` is not copied by us. On a channel that is lost this does nothing."""
        if self._transport is not None and self._reason is None:
            self._transport.writelines(encode(message, body))

    def fail(self, reason: str) -> None:
        """Close at once because of ``reason``; messages that are still under way are not delivered."""
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
            self.fail(f"the worker sent something that is no message: {error}")

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
            return f"the connection to the worker broke: {exc}"
        if self._decoder.pending:
            return f"the worker closed its connection {self._decoder.pending} bytes into a message"
        return "the worker closed its connection"
