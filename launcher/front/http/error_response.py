"""Error responses: the shape in which an API family writes its errors, and the headers that come with them.

Separate because a request can fail in many places (the connection, routing, its body, the scheduler) and all of them
must return the same shape to the client. What counts as an error is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec import Struct

from launcher.errors import RequestError

_encode = msgspec.json.Encoder().encode


class ErrorResponse(NamedTuple):
    """An error as it is sent: ``headers`` in addition to content type and length, ``body`` as JSON."""

    status: int
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How an API family writes errors. ``body`` converts an error to the value that is sent, of ``body_type``.

    ``status`` returns the HTTP status, for families whose statuses differ from those of ``RequestError``.
    """

    body_type: type[Struct]
    body: Callable[[RequestError], Struct]
    status: Callable[[RequestError], int] = attrgetter("status")

    def response(self, error: RequestError) -> ErrorResponse:
        """The response to a request that failed with ``error``."""
        return ErrorResponse(self.status(error), _encode(self.body(error)), _retry_after(error))


def _retry_after(error: RequestError) -> Sequence[tuple[bytes, bytes]]:
    """The header ``Retry-After``, in whole seconds, rounded up, at least 1."""
    if error.retry_after is None:
        return ()
    return [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after)))]


def internal_error() -> RequestError:
    """For any unexpected exception. Its details are logged and not sent, since they may be confidential."""
    return RequestError("internal server error; see the server's log", status=500, code="internal_error")


class ErrorDetail(Struct, frozen=True):
    """The error: ``message`` for people, ``code`` for programs, ``param`` the field or header at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, frozen=True):
    """An error, in OpenAI's shape."""

    error: ErrorDetail


# The types of errors that OpenAI's clients know, by status; others are the client's fault (4xx) or ours (5xx).
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}


def _openai_body(error: RequestError) -> ErrorBody:
    status = error.status
    type_ = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return ErrorBody(ErrorDetail(str(error), type_, error.param, error.code))


# OpenAI's shape: for its own API, for ours, for paths that no API family has, and for what is not HTTP at all.
DEFAULT_ERRORS = ErrorFormat(ErrorBody, _openai_body)
