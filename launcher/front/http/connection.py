"""One HTTP connection: uvicorn's protocol with limits on header size and slow clients, and with fewer system calls.

Separate from the server because this module defends against a single client, while the server is started and stopped as
a whole. uvicorn itself limits neither the size of the headers nor the time that a request may take to arrive.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from launcher.errors import RequestError
from launcher.front.http.closing import is_readable
from launcher.front.http.disconnect import EXTENSION, Client
from launcher.front.http.error_response import DEFAULT_ERRORS
from launcher.options import FrontOptions

# Clients offer to upgrade to another protocol with these: as options of the header Connection, and as headers.
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
# When the server stops: how often to look whether a request that has arrived was read.
UNREAD_SECONDS = 0.01


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


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, with the limits of ``options``.

    ``header_bytes`` limits the request line and headers of each request; those received in one piece with the first
    byte are not counted. ``keep_alive_seconds`` is the idle timeout, ``request_seconds`` the time for a request to
    arrive.
    """

    _current: RequestResponseCycle | None = None  # the request being answered; ``cycle`` is the last one received
    _in_headers = False
    _headers_received = 0
    _incomplete_since: float | None = None
    _incomplete_cycle: RequestResponseCycle | None = None
    _stalled_since: float | None = None
    _stalled_at = 0

    def __init__(self, *args: Any, options: FrontOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = options.header_bytes
        self._request_seconds = options.request_seconds
        self.timeout_keep_alive = options.keep_alive_seconds  # type: ignore[assignment]  # typed as whole seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        coalescing = CoalescingTransport(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(cast(asyncio.Transport, coalescing))
        self._client = Client()
        self._extensions: dict[str, Any] = {EXTENSION: self._client}

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        super().connection_lost(exc)
        # uvicorn only tells the newest request, which may be queued behind the one that is being answered.
        if self._current is not None:
            self._current.disconnected = True
        self._client.disconnected()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        continued = self._in_headers
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if continued and self._in_headers:
            self._headers_received += len(data)
            if self._headers_received > self._header_bytes:
                message = f"the request line and headers have more than {self._header_bytes} bytes"
                self._refuse(RequestError(message, status=431, code="head_too_large"))

    def _parse(self, data: bytes) -> None:
        """Parse data that was received, and ignore any offer to upgrade to another protocol.

        Clients may offer an upgrade with any request (Java's offers HTTP/2), and a server may ignore it. But the parser
        stops there and takes the rest of the stream, including the body, for the other protocol. So a new parser
        continues: it gets the headers without the offer, then the rest.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                data = self._headers_without_upgrade() + data[stop.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _headers_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name not in _UPGRADE_HEADERS:
                lines.append(b"%b: %b" % (name, _without_upgrade(value) if name == b"connection" else value))
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_headers, self._headers_received = True, 0
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_headers = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("this server is not a proxy")
        if not self.pipeline:
            self._current = self.cycle

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        # uvicorn pauses reading during a large body. Without reading, a disconnect would not be noticed. Pipelined
        # requests are the exception, since no more of them may be read: a disconnect is noticed after the first.
        if not self.pipeline:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Called when a response was written; starts the next pipelined request, if there is one."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._current = following or self._current

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for invalid HTTP."""
        self._refuse(RequestError("this is not a valid HTTP request", status=400, code="invalid_http"))

    def _refuse(self, error: RequestError) -> None:
        if self.transport.is_closing():
            return
        status, body, _ = DEFAULT_ERRORS.response(error)
        headers = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(headers.encode() + body)
        self.transport.close()

    def is_waiting(self) -> bool:
        """Whether the client has connected and sent nothing yet, or sent something that is not answered yet."""
        if self.cycle is None:
            return True  # type: ignore[unreachable]  # uvicorn's types do not say that it starts as None
        return not self.cycle.response_complete or self._has_unread_data()

    def _has_unread_data(self) -> bool:
        sock = self.transport.get_extra_info("socket")
        return not self.transport.is_closing() and sock is not None and is_readable(sock.fileno())

    def shutdown(self) -> None:
        """Called by the server when it stops: close the connection, after the response to a request that has arrived.

        A request that has not been read yet is read first: closing would reset the connection.
        """
        if self._has_unread_data():
            self.loop.call_later(UNREAD_SECONDS, self.shutdown)
        else:
            super().shutdown()

    def close_if_slow(self, now: float) -> None:
        """Close the connection if for more than ``request_seconds`` the client has left a request incomplete or read
        nothing.

        If it reads nothing, closing would wait for it too, so the connection is aborted.
        """
        seconds = self._request_seconds
        sent, unsent = cast(CoalescingTransport, self.transport).sent()
        if not unsent:
            self._stalled_since = None
        elif self._stalled_since is None or sent != self._stalled_at:
            self._stalled_since, self._stalled_at = now, sent
        elif now - self._stalled_since > seconds:
            self.transport.abort()
            return
        if not self._is_incomplete():
            self._incomplete_since = None
        elif self._incomplete_since is None or self._incomplete_cycle is not self.cycle:
            self._incomplete_since, self._incomplete_cycle = now, self.cycle
        elif now - self._incomplete_since > seconds:
            self.transport.close()

    def _is_incomplete(self) -> bool:
        """Whether the rest of a request is missing, or the client has connected and sent no request yet."""
        if self.cycle is None:
            return True  # type: ignore[unreachable]  # uvicorn's types do not say that it starts as None
        if self.cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body


def _without_upgrade(value: bytes) -> bytes:
    """The value of a header Connection without the options that offer an upgrade."""
    options = [option.strip() for option in value.split(b",")]
    return b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)
