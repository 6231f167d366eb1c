"""One connection: uvicorn's, with bounds on its heads and on its patience, and with fewer system calls.

Separate from the server because this is what a client can do to us, and the server is what its composer does. What
uvicorn leaves unbounded is bounded here: the size of a head, and the time in which a request has to have come.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from launcher.front.http.disconnect import EXTENSION, DisconnectWatch
from launcher.front.http.errors import error_body

# Of request line and headers, in bytes; what comes with their first packet is not counted.
HEAD_BYTES = 64 * 1024
# With these a client offers to speak another protocol, in the header Connection and as headers themselves.
_OFFER = (b"upgrade", b"http2-settings")


class JoinedWrites:
    """A transport that sends head and body of a reply together: uvicorn writes them one after the other, and each
    write would be a system call and a packet of its own. Everything but writing and closing goes through."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """As the transport has it; here because it is asked often."""
        return self._transport.is_closing()

    def sent(self) -> tuple[int, int]:
        """Bytes that the system has taken, and bytes that it has not, because the client does not read."""
        unsent = self._transport.get_write_buffer_size()
        return self._written - unsent, unsent

    def write(self, data: bytes) -> None:
        """Hold the first piece until the next one comes, or the event loop's next turn."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, None
            self._written += len(held) + len(data)
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._written += len(held)
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a bound on its heads and on its patience."""

    _running: RequestResponseCycle | None = None  # the last one that was begun; ``cycle`` is the last that came
    _in_head = False
    _head_bytes = 0
    _owed_since: float | None = None
    _owed_by: RequestResponseCycle | None = None
    _unread_since: float | None = None
    _sent_then = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(cast(asyncio.Transport, transport), self.loop)))
        self._disconnect = DisconnectWatch()
        self._extensions: dict[str, Any] = {EXTENSION: self._disconnect}

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        super().connection_lost(exc)
        # uvicorn tells the newest request only, which may be one that waits for those before it.
        if self._running is not None:
            self._running.disconnected = True
        self._disconnect.leave()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        continued = self._in_head
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if continued and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the request's head is longer than {HEAD_BYTES} bytes", "head_too_large")

    def _parse(self, data: bytes) -> None:
        """Parse what has come, as if nobody had asked for another protocol than HTTP/1.1.

        Clients may offer one with any request (Java's offers HTTP/2), and a server may ignore it. The parser stops
        there and takes the rest of the stream, the body too, for the other protocol. So another one goes on: it gets
        the head without the offer, and then the rest.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                data = self._head_without_offer() + data[stop.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name not in _OFFER:
                lines.append(b"%b: %b" % (name, _without_offer(value) if name == b"connection" else value))
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")
        if not self.pipeline:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        # After a large body, so that it is seen when the client leaves; not where a request waits for one before it,
        # since then nothing more may come: such a client is seen to leave when the first is answered.
        if not self.pipeline:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Called when a reply is written: the next request, if one waits, is begun."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._running = following or self._running

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP; in the shape of every other error."""
        self._refuse(400, "this is not a valid HTTP request", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        if self.transport.is_closing():
            return
        body = error_body(message, status, code)
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def close_if_slow(self, now: float, seconds: float) -> None:
        """Close when for longer than ``seconds`` the client has owed the rest of the same request, or read nothing of
        what is there for it. (A client that does not read would hold its replies for ever: closing waits for it too.)
        """
        sent, unsent = cast(JoinedWrites, self.transport).sent()
        if not unsent:
            self._unread_since = None
        elif self._unread_since is None or sent != self._sent_then:
            self._unread_since, self._sent_then = now, sent
        elif now - self._unread_since > seconds:
            self.transport.abort()
            return
        if not self._owes():
            self._owed_since = None
        elif self._owed_since is None or self._owed_by is not self.cycle:
            self._owed_since, self._owed_by = now, self.cycle
        elif now - self._owed_since > seconds:
            self.transport.close()

    def _owes(self) -> bool:
        """Whether the client is in the middle of a request, or has connected and never sent one."""
        if self.cycle is None:
            return True  # type: ignore[unreachable]  # uvicorn's types forget that it starts as None
        if self.cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body


def _without_offer(value: bytes) -> bytes:
    """The value of a header Connection without the options that offer another protocol."""
    options = [option.strip() for option in value.split(b",")]
    return b", ".join(option for option in options if option.lower() not in _OFFER)
