"""One HTTP connection: uvicorn's protocol, bounded in memory and time whatever the client sends.

Separate from the server because this module defends against a single client, while the server is started and stopped as
a whole. uvicorn itself limits neither the size of the headers nor the number of pipelined requests nor the time that a
request may take to arrive.
"""

from __future__ import annotations

import asyncio
import http
import re
from collections.abc import Iterable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from launcher.errors import RequestError
from launcher.front.http.body_reader import content_length
from launcher.front.http.closing import is_readable
from launcher.front.http.coalescing_transport import CoalescingTransport
from launcher.front.http.disconnect import EXTENSION, Client
from launcher.front.http.error_response import DEFAULT_ERRORS
from launcher.front.http.half_closed import HalfClosedWatch, is_reset
from launcher.front.http.responses import LINGER_SECONDS
from launcher.options import FrontOptions

# As in Apache httpd. Each header takes about 150 bytes, however short it is.
MAX_HEADER_FIELDS = 100
# Reading pauses when more than this was received after a request that is not answered yet. Up to here a client that
# disconnects is noticed at once.
MAX_PENDING_BYTES = 64 * 1024
# What all connections may hold together in heads and pipelined requests of more than LARGE_BYTES.
MAX_HELD_BYTES = 32 * 1024 * 1024
LARGE_BYTES = 4 * 1024
# The trailers of a chunked body are counted in segments of this size.
CHUNKED_SEGMENT_BYTES = 4 * 1024
# Segments that are parsed before other connections get a turn.
MAX_SEGMENTS = 500
# uvloop reads this much at a time, and from one connection up to 32 times before it turns to others.
RECEIVE_BUFFER_BYTES = 256 * 1024

# Clients offer to upgrade to another protocol with these: as options of the header Connection, and as headers.
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
# When the server stops: how often to look whether a request that has arrived was read.
UNREAD_SECONDS = 0.01
_EMPTY_LINES = re.compile(rb"[\r\n]*")


class _Flow(FlowControl):
    """Flow control in which reading can also be held, whatever uvicorn's requests ask for."""

    held = False

    def hold(self) -> None:
        """Pause reading until ``release``."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on."""
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless reading is held."""
        if self.read_paused and not self.held:
            self.read_paused = False
            self._transport.resume_reading()


class _Dropped(list[tuple[bytes, bytes]]):
    """Stays empty."""

    def append(self, field: tuple[bytes, bytes]) -> None:
        """Drop ``field``."""


# In place of the headers after a head is complete: uvicorn would append trailers to them.
_TRAILERS = _Dropped()


class HeldBytes:
    """The bytes of large heads and of pipelined requests that all connections hold together: ``used`` now, and at most
    ``limit``.

    Without this limit many clients could each use the limits of one connection. Small requests are not counted, so they
    are served whatever others hold.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.limit = limit
        self.used = 0


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, with the limits of ``options``; what it holds counts in ``held_bytes``.

    ``header_bytes`` limits the request line, the headers and the trailers of each request. ``keep_alive_seconds`` is
    the idle timeout, ``request_seconds`` the time for a request to arrive.

    The parser is fed in segments, none of which reaches beyond the end of a head or of a body. So heads are counted
    exactly, and no request is parsed before the previous one is answered: until then its bytes are kept as they are.
    """

    flow: _Flow
    _is_new = True  # no request has begun yet
    _in_head = True  # a head is expected or has begun; otherwise a body
    _head_bytes = 0
    _body_left: int | None = None  # of a body whose length is announced; 0 if it is chunked, None if not known yet
    _framing_bytes = 0  # of a chunked body, since its last data
    _tail = b""  # the last bytes of an unfinished head or chunked body, in which its end may have begun
    _pending: bytes | bytearray = b""  # received and not parsed, from ``_pending_at`` on
    _pending_at = 0
    _held_head = _held_pending = 0  # counted in ``_held_bytes``
    _discarding = False  # what the client sends, because it was refused
    _half_closed: HalfClosedWatch | None = None
    _closing_timer: asyncio.TimerHandle | None = None
    _incomplete_since: float | None = None
    _stalled_since: float | None = None
    _stalled_at = 0

    def __init__(self, *args: Any, options: FrontOptions, held_bytes: HeldBytes, **kwargs: Any) -> None:
        # The parser calls this for each chunk of a body, however short it is.
        self._body_parts: list[bytes] = []
        self.on_body = self._body_parts.append  # type: ignore[assignment, method-assign]
        super().__init__(*args, **kwargs)
        self._header_bytes = options.header_bytes
        self._request_seconds = options.request_seconds
        self._held_bytes = held_bytes
        self.timeout_keep_alive = options.keep_alive_seconds  # type: ignore[assignment]  # typed as whole seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        coalescing = CoalescingTransport(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(cast(asyncio.Transport, coalescing))
        self.flow = _Flow(self.transport)
        self._client = Client()
        self._extensions: dict[str, Any] = {EXTENSION: self._client}

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, also after an error such as RST, when uvicorn's method would keep its timer.

        Nothing may refer to this object from now on. References in circles are cut too, since the garbage collector
        would keep them for a while.
        """
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        if self._half_closed is not None:
            self._half_closed.cancel()
        self._disconnect_request()
        self.flow.resume_writing()
        self._pending = b""
        self._forget_request()
        self._hold(0, 0)
        self.parser = self._half_closed = self._closing_timer = None  # type: ignore[assignment]

    def _disconnect_request(self) -> None:
        """Tell the request that is being received or answered that its client has gone."""
        if self.cycle is not None:
            if not self.cycle.response_complete:
                self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._client.disconnected()

    def _forget_request(self) -> None:
        """Release the request that was answered: an idle connection must not keep its headers."""
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
        self.url = b""
        if self._held_head:
            self._hold(0, self._held_pending)

    def _hold(self, head: int, pending: int) -> bool:
        """Count what is held now; returns whether this is within the limit."""
        more = head + pending - self._held_head - self._held_pending
        self._held_head, self._held_pending = head, pending
        self._held_bytes.used += more
        return more <= 0 or self._held_bytes.used <= self._held_bytes.limit

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._pending:
            self._append(data)
        elif not self._discarding:
            if self.timeout_keep_alive_task is not None:
                self._unset_keepalive_if_required()
            self._parse(data, 0)
        if len(data) >= RECEIVE_BUFFER_BYTES:
            self._let_others_read()

    def _parse(self, data: bytes | bytearray, at: int) -> None:
        """Parse what was received, from ``at`` on, until a request is complete that must be answered first."""
        end = len(data)
        last = MAX_SEGMENTS
        try:
            if not at and end <= LARGE_BYTES and not self._head_bytes and not self._is_answering():
                at = self._parse_plain(data)
            while at < end:
                if not self._in_head:
                    at = self._parse_body(data, at)
                elif self.cycle is None or self.cycle.response_complete:
                    at = self._parse_head(data, at)
                else:
                    self._keep(data, at)
                    return
                last -= 1
                if not last and at < end:
                    self._keep(data, at)
                    self.loop.call_soon(self._parse_pending)
                    return
        except RequestError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestError) else _invalid_http())

    def _parse_plain(self, data: bytes | bytearray) -> int:
        """Parse a request that arrives in one piece; returns up to where.

        The same as the general way, in fewer calls. It takes 2 µs less of about 100 for each request.
        """
        stop = data.find(b"\r\n\r\n") + 4
        if stop < 4 or stop > self._header_bytes or data[0] in b"\r\n":
            return 0
        try:
            self.parser.feed_data(data[:stop])
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        if self._in_head:
            return stop
        self._head_bytes = stop
        length = _announced_length(self.scope["headers"])
        if not length or stop + length != len(data):  # chunked, or not all here
            return stop
        cycle = self.cycle
        self.parser.feed_data(data[stop:])
        cycle.body += self._body_parts.pop()
        return len(data)

    def _parse_head(self, data: bytes | bytearray, at: int) -> int:
        """Parse the head that begins or continues at ``at``, to its end or to that of the data; returns where."""
        if not self._head_bytes and data[at] in b"\r\n":  # empty lines are allowed here (RFC 9112, section 2.2)
            return _after_empty_lines(data, at)
        stop = self._end_of_section(data, at, len(data))
        self._head_bytes += stop - at
        self._check_head()
        if self._head_bytes > LARGE_BYTES and not self._hold(self._head_bytes, 0):
            message = f"large heads and pipelined requests have more than {self._held_bytes.limit} bytes; retry later"
            raise RequestError(message, status=429, code="too_much_inside", retry_after=1.0)
        self._feed(data, at, stop)
        if self._in_head and self.headers:
            self._check_fields()
        return stop

    def _parse_body(self, data: bytes | bytearray, at: int) -> int:
        """Parse the body that continues at ``at``, to its end or to that of the data at most; returns where."""
        if self._body_left is None:
            self._body_left = _announced_length(self.cycle.scope["headers"])
        if self._body_left:
            stop = min(len(data), at + self._body_left)
            self._body_left -= stop - at
            self._feed(data, at, stop)
            return stop
        stop = self._end_of_section(data, at, min(len(data), at + CHUNKED_SEGMENT_BYTES))
        if self._feed(data, at, stop):
            self._framing_bytes = 0
        elif not self._in_head:
            self._framing_bytes += stop - at
            self._check_head()
        return stop

    def _end_of_section(self, data: bytes | bytearray, at: int, limit: int) -> int:
        """Where the empty line ends that ends a head or a chunked body, or else ``limit``."""
        if self._tail:
            begun = self._tail + data[at : at + 3]
            found = begun.find(b"\r\n\r\n")
            if found >= 0:
                stop = at + found + 4 - len(self._tail)
                self._tail = b""
                return stop
        found = data.find(b"\r\n\r\n", at, limit)
        if found >= 0:
            self._tail = b""
            return found + 4
        self._tail = (self._tail + data[max(at, limit - 3) : limit])[-3:]
        return limit

    def _check_head(self) -> None:
        """Raise ``RequestError`` if head and trailers are too large."""
        if self._head_bytes + self._framing_bytes > self._header_bytes:
            message = f"the request line, headers and trailers have more than {self._header_bytes} bytes"
            raise RequestError(message, status=431, code="head_too_large")

    def _check_fields(self) -> None:
        """Raise ``RequestError`` if there are too many headers."""
        if len(self.headers) > MAX_HEADER_FIELDS:
            message = f"the request has more than {MAX_HEADER_FIELDS} headers"
            raise RequestError(message, status=431, code="head_too_large")

    def _feed(self, data: bytes | bytearray, at: int, stop: int) -> bool:
        """Feed a segment to the parser; returns whether it contained data of a body."""
        try:
            self.parser.feed_data(data if stop - at == len(data) else memoryview(data)[at:stop])
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        parts = self._body_parts
        if not parts:
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.body += parts[0] if len(parts) == 1 else b"".join(parts)
            if self.cycle.more_body and len(self.cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.cycle.message_event.set()
        parts.clear()
        return True

    def _ignore_upgrade(self) -> None:
        """Parse the head again without the offer to upgrade to another protocol.

        Clients may offer an upgrade to another protocol with any request (Java's offers HTTP/2), and a server may
        ignore it. But the parser stops there and takes the rest of the stream, including the body, for the other
        protocol. So a new parser continues: it gets the headers without the offer.
        """
        head = self._headers_without_upgrade()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _headers_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name not in _UPGRADE_HEADERS:
                lines.append(b"%b: %b" % (name, _without_upgrade(value) if name == b"connection" else value))
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head, self._is_new = True, False
        self.url = b""
        self.expect_100_continue = False
        headers: list[tuple[bytes, bytes]] = []
        self.headers = headers
        self.scope = {  # as uvicorn's method makes it, and with the client
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "headers": headers,
            "state": self.app_state.copy(),
            "extensions": self._extensions,
        }  # type: ignore[typeddict-item]

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        self._incomplete_since = None
        if not self.parser.should_upgrade():
            if len(self.headers) > MAX_HEADER_FIELDS:
                self._check_fields()
            super().on_headers_complete()
            self._body_left = None
            self.headers = _TRAILERS
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("this server is not a proxy")

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self.parser.should_upgrade():
            return
        self._in_head = True
        self._head_bytes = self._framing_bytes = 0
        self._incomplete_since = None
        if self.cycle.response_complete:
            self._forget_request()
            return
        self.cycle.more_body = False
        self.cycle.message_event.set()
        # Reading pauses during a large body. Without reading, a disconnect would not be noticed.
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Called when a response was written. Unlike uvicorn's method, parses the next request only now."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._in_head:
            self._forget_request()
        if self._half_closed is not None:
            self._half_closed.restart()
        if self._pending or self._half_closed is not None:
            self._parse_pending()
        else:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_complete_request(self) -> bool:
        return self._is_answering() and not self.cycle.more_body

    def _keep(self, data: bytes | bytearray, at: int) -> None:
        """Keep what was received from ``at`` on, to be parsed later."""
        self._pending, self._pending_at = data, at
        if len(data) - at > MAX_PENDING_BYTES:
            self.flow.hold()
        if len(data) > LARGE_BYTES and not self._hold(self._held_head, len(data)):
            self.transport.abort()

    def _append(self, data: bytes) -> None:
        pending = self._pending
        if isinstance(pending, bytes):
            pending = bytearray(memoryview(pending)[self._pending_at :])
            self._pending_at = 0
        pending += data
        self._keep(pending, self._pending_at)

    def _parse_pending(self) -> None:
        """Parse what was kept; close the connection if it was the last of a client that sends nothing more."""
        if self.transport.is_closing():
            return
        data, self._pending = self._pending, b""
        if data:
            self._unset_keepalive_if_required()
            self._parse(data, self._pending_at)
        if not self._pending:
            self._hold(self._held_head, 0)
            self.flow.release()
            if self._half_closed is not None and not self._has_complete_request():
                self.transport.close()

    def _let_others_read(self) -> None:
        """Read on in the next iteration of the event loop."""
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]  # typed as always closing
        """Called by the event loop when the client sends nothing more; returns whether the connection stays open."""
        cast(CoalescingTransport, self.transport).flush()
        if self.scheme == "https" or self._discarding:  # TLS has no half-closed connections
            return False
        if not self._pending and not self._has_complete_request():
            return False
        if self._half_closed is None:
            if not self._pending:
                self.cycle.keep_alive = False
            self._half_closed = HalfClosedWatch(self.transport, self._may_send_interim_response)
        return True

    def _may_send_interim_response(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_started and cycle.scope["http_version"] == "1.1"

    def _refuse(self, error: RequestError) -> None:
        """Answer with an error, and for a while discard what the client sends.

        Closing a connection with unread data would reset it, and the client might never see the response.
        """
        self._pending = b""
        self._hold(0, 0)
        if self.transport.is_closing():
            return
        responding = self.cycle is not None and self.cycle.response_started
        self._disconnect_request()
        if responding:
            self.transport.close()
            return
        transport = cast(CoalescingTransport, self.transport)
        transport.write(_response(error))
        transport.flush()
        if transport.can_write_eof():
            transport.write_eof()
        self._discarding = True
        self._closing_timer = self.loop.call_later(LINGER_SECONDS, transport.close)
        self.flow.release()

    def is_expected(self) -> bool:
        """Whether a request is expected: the client has connected and sent none yet, or one has arrived in part, or has
        not been read."""
        if self._discarding:
            return False
        return (
            self._is_new or bool(self._pending) or (self._in_head and self._head_bytes > 0) or self._has_unread_data()
        )

    def _has_unread_data(self) -> bool:
        sock = self.transport.get_extra_info("socket")
        return not self.transport.is_closing() and sock is not None and is_readable(sock.fileno())

    def shutdown(self) -> None:
        """Called by the server when it stops: close the connection, after the response to a request that has arrived.

        A request that has not been read yet is read first: closing would reset the connection.
        """
        if self._discarding:
            self.transport.close()
        elif self._has_unread_data() and self._half_closed is None:
            self.loop.call_later(UNREAD_SECONDS, self.shutdown)
        else:
            super().shutdown()

    def close_if_slow(self, now: float) -> None:
        """Close the connection if for more than ``request_seconds`` the client has left a request incomplete or read
        nothing, or if it has disconnected while nothing was read from it.

        If it reads nothing, closing would wait for it too, so the connection is aborted.
        """
        if self.flow.held and is_reset(self.transport):
            self.transport.abort()
            return
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
        elif self._incomplete_since is None:
            self._incomplete_since = now
        elif now - self._incomplete_since > seconds:
            self.transport.close()

    def _is_incomplete(self) -> bool:
        """Whether the rest of a request is missing, or the client has connected and sent no request yet."""
        if self._is_answering():
            return self.cycle.more_body
        return self.timeout_keep_alive_task is None


def _without_upgrade(value: bytes) -> bytes:
    """The value of a header Connection without the options that offer an upgrade."""
    options = [option.strip() for option in value.split(b",")]
    return b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)


def _announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The length of the body, or 0 if it is chunked; the parser has checked that there is one of the two."""
    for name, value in headers:
        if name == b"content-length":
            return content_length(value)
    return 0


def _after_empty_lines(data: bytes | bytearray, at: int) -> int:
    match = _EMPTY_LINES.match(data, at)
    assert match is not None
    return match.end()


def _invalid_http() -> RequestError:
    return RequestError("this is not a valid HTTP request", status=400, code="invalid_http")


def _response(error: RequestError) -> bytes:
    status, body, headers = DEFAULT_ERRORS.response(error)
    lines = [
        b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(b"%b: %b" % header for header in headers),
    ]
    return b"\r\n".join([*lines, b"", body])
