"""The worker's end of the channel: blocking reads and writes of frames on a connected stream socket.

Separate from ``loop`` so that the loop deals only with messages. Their meaning does not belong here.
"""

from __future__ import annotations

import socket
from collections import deque

import msgspec

from launcher.core.protocol.frames import Buffer, Decoder, encode, to_worker_decoder
from launcher.core.protocol.messages import ToWorker

RECEIVE_BYTES = 256 * 1024  # more than the default size of a socket buffer, so that one read empties it


class ChannelClosed(Exception):
    """The front closed the channel. Not a ``ConnectionError``, which libraries raise for other reasons."""


class Channel:
    """Receives messages from the front and sends messages to it. Not thread-safe."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder: Decoder[ToWorker] = to_worker_decoder()
        self._buffer = bytearray(RECEIVE_BYTES)
        self._received: deque[tuple[ToWorker, bytes]] = deque()

    def receive(self) -> tuple[ToWorker, bytes] | None:
        """Wait for the next message and its body; None on EOF.

        Raises ``FrameError`` if the stream carries anything but frames.
        """
        while not self._received:
            try:
                count = self._socket.recv_into(self._buffer)
            except ConnectionError:
                return None
            if count == 0:
                return None
            self._received.extend(self._decoder.feed(memoryview(self._buffer)[:count]))
        return self._received.popleft()

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
