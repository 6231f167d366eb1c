"""A transport that sends the headers and the body of a response in one system call.

Separate from the connection because it knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any


class CoalescingTransport:
    """A transport that sends the headers and the body of a response together.

    uvicorn writes them separately, and each write would be a system call and a packet. All other calls are passed
    through.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether the transport is closing; defined here because it is called often."""
        return self._transport.is_closing()

    def sent(self) -> tuple[int, int]:
        """Bytes that the kernel has accepted, and bytes that it has not because the client does not read."""
        unsent = self._transport.get_write_buffer_size()
        return self._written - unsent, unsent

    def write(self, data: bytes) -> None:
        """Hold the first write until the second one, or until the next iteration of the event loop."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self.flush)
        else:
            held, self._held = self._held, None
            self._written += len(held) + len(data)
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held, then close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what is held."""
        if self._held is not None:
            held, self._held = self._held, None
            if not self._transport.is_closing():  # the connection may have been lost since
                self._written += len(held)
                self._transport.write(held)
