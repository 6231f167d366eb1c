"""Tells clients that have closed their connection from clients that only send nothing more.

Both send the same packet (FIN). A client that called ``shutdown(SHUT_WR)`` still reads and gets its response; one that
called ``close`` does not, and computing for it would be a waste. Only what is sent to them tells them apart: the system
of the latter answers with RST. So an interim response is sent, which HTTP/1.1 allows at any time before the response
(RFC 9110, section 15.2). What happens to the request does not belong here.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

# The response of most requests is on its way before the first interim response would be sent.
PROBE_SECONDS = 1.0
CHECK_SECONDS = 0.25
INTERIM_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HalfClosedWatch:
    """Watches the connection of a client that sends nothing more; aborts it when the client has closed it.

    ``may_probe`` tells whether an interim response may be sent at this time.
    """

    def __init__(self, transport: asyncio.Transport, may_probe: Callable[[], bool]) -> None:
        self._transport = transport
        self._may_probe = may_probe
        self._probed = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PROBE_SECONDS, self._check)

    def restart(self) -> None:
        """A response was sent, which tells the clients apart as well as an interim response."""
        self._timer.cancel()
        self._timer = self._loop.call_later(PROBE_SECONDS, self._check)

    def cancel(self) -> None:
        """The connection has ended."""
        self._timer.cancel()

    def _check(self) -> None:
        if self._transport.is_closing():
            return
        if is_reset(self._transport):
            self._transport.abort()
            return
        if not self._probed and self._may_probe():
            self._probed = True
            self._transport.write(INTERIM_RESPONSE)
        self._timer = self._loop.call_later(CHECK_SECONDS, self._check)


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether the connection was reset. The event loop does not notice this while it neither reads nor writes."""
    descriptor = transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, 0)  # POLLERR and POLLHUP are always reported
    return bool(poll.poll(0))
