"""The worker's end of the channel: blocking frames over one connected stream socket.

Separate from ``loop`` so that the loop knows messages only. What the messages mean must not enter here.
"""

from __future__ import annotations

import socket
from collections import deque

import msgspec

from launcher.core.protocol.frames import Buffer, Decoder, encode, to_worker_decoder
from launcher.core.protocol.messages import ToWorker

RECEIVE_BYTES = 256 * 1024  # more than the kernel's default socket buffer holds: one read takes all there is


class ChannelClosed(Exception):
    """The front is gone. Not a ``ConnectionError``, which libraries raise for reasons of their own."""


class Channel:
    """Receives what the front sends and sends what the worker has to say; used from one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder: Decoder[ToWorker] = to_worker_decoder()
        self._buffer = bytearray(RECEIVE_BYTES)
        self._arrived: deque[tuple[ToWorker, bytes]] = deque()

    def receive(self) -> tuple[ToWorker, bytes] | None:
        """The next message and its body, waiting for it; None when the front has closed the channel.

        Raises ``FrameError`` when the stream carries something else.
        """
        while not self._arrived:
            try:
                count = self._socket.recv_into(self._buffer)
            except ConnectionError:
                return None
            if count == 0:
                return None
            self._arrived.extend(self._decoder.feed(memoryview(self._buffer)[:count]))
        return self._arrived.popleft()

    def send(self, message: msgspec.Struct, body: Buffer = b"") -> None:
        """Send one frame. Raises ``ChannelClosed``."""
        buffers = [memoryview(buffer).cast("B") for buffer in encode(message, body)]
        try:
            sent = self._socket.sendmsg(buffers)
            for buffer in buffers:
                if sent < len(buffer):
                    self._socket.sendall(buffer[sent:])
                sent = max(0, sent - len(buffer))
        except ConnectionError as error:
            raise ChannelClosed from error
