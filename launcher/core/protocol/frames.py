"""Frames on the stream between front and worker: a sans-I/O codec used by both sides.

A frame is an 8-byte prefix (two little-endian uint32: length of the head, length of the body), the head (a msgpack
message of ``messages``) and the body (raw tensor bytes). The lengths are checked against limits before anything is
allocated, so a stream with any other content is rejected at its first eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from launcher.core.protocol.messages import ToFront, ToWorker
from launcher.errors import LauncherError

PREFIX = struct.Struct("<II")
MAX_HEAD = 4 * 1024 * 1024
MAX_BODY = 1024 * 1024 * 1024

Message = TypeVar("Message")
Buffer = bytes | bytearray | memoryview


class FrameError(LauncherError):
    """The stream does not follow the protocol; the connection must be closed."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct, body: Buffer = b"") -> list[Buffer]:
    """The buffers to write for one frame, in order; ``body`` is not copied."""
    head = _encoder.encode(message)
    size = memoryview(body).nbytes
    if len(head) > MAX_HEAD or size > MAX_BODY:
        raise FrameError(f"a frame of {len(head)} + {size} bytes exceeds the limit of {MAX_HEAD} + {MAX_BODY}")
    prefix = PREFIX.pack(len(head), size)
    return [prefix + head, body] if size else [prefix + head]


class Decoder(Generic[Message]):
    """Turns received bytes into (message, body) pairs; ``body`` is a copy."""

    def __init__(self, message_type: type[Message]) -> None:
        self._decode = msgspec.msgpack.Decoder(message_type).decode
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> Iterator[tuple[Message, bytes]]:
        """Add ``data`` and yield each frame that it completes. Raises ``FrameError`` if the data is not a frame."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= PREFIX.size:
                head_size, body_size = PREFIX.unpack_from(self._buffer, start)
                if head_size == 0 or head_size > MAX_HEAD or body_size > MAX_BODY:
                    raise FrameError(f"not a frame: it announces {head_size} + {body_size} bytes")
                head_start = start + PREFIX.size
                end = head_start + head_size + body_size
                if len(self._buffer) < end:
                    break
                view = memoryview(self._buffer)
                try:
                    message = self._decode(view[head_start : head_start + head_size])
                    body = bytes(view[head_start + head_size : end])
                except msgspec.MsgspecError as error:
                    raise FrameError(f"not a valid message: {error}") from error
                finally:
                    view.release()
                start = end
                yield message, body
        finally:
            del self._buffer[:start]

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame; nonzero at the end of a stream if the other side died while writing."""
        return len(self._buffer)


def to_worker_decoder() -> Decoder[ToWorker]:
    """For the worker: decodes what the front sends."""
    return Decoder(ToWorker)  # type: ignore[arg-type]  # msgspec accepts unions, which `type[…]` cannot express


def to_front_decoder() -> Decoder[ToFront]:
    """For the front: decodes what a worker sends."""
    return Decoder(ToFront)  # type: ignore[arg-type]  # as above
