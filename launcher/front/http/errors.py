"""Errors as clients see them: one JSON shape (OpenAI's, for every route), and how Starlette's own become that.

Separate because a request can fail in many places and must look the same from all of them.
"""

from __future__ import annotations

import http
import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from launcher.errors import RequestError
from launcher.front.http.bodies import ErrorBody, ErrorDetail

_encode = msgspec.json.Encoder().encode

# What OpenAI's clients know as the kind of an error, by status; everything else is the client's fault or ours.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}


def error_type(status: int) -> str:
    """The ``type`` of an error with this status."""
    return _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


def error_body(message: str, status: int, code: str, param: str | None = None) -> bytes:
    """The JSON of an error."""
    return _encode(ErrorBody(ErrorDetail(message, error_type(status), param, code)))


def error_headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Headers beside the usual ones: ``Retry-After`` in whole seconds, rounded up."""
    if error.retry_after is None:
        return []
    return [(b"retry-after", str(max(1, math.ceil(error.retry_after))).encode())]


async def http_exception(request: Request, error: Exception) -> Response:
    """For what Starlette raises itself: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    method, path = request.method, request.url.path
    if error.status_code == 405:
        allowed = sorted({*headers.get("Allow", "").split(", "), "OPTIONS"} - {""})
        headers["Allow"] = ", ".join(allowed)
        if method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        message, code = f"{path} takes {' and '.join(allowed)}, not {method}", "method_not_allowed"
    elif error.status_code == 404:
        message, code = f"there is nothing at {path}; GET /docs lists what there is", "not_found"
    else:
        message, code = str(error.detail), http.HTTPStatus(error.status_code).name.lower()
    body = error_body(message, error.status_code, code)
    return Response(body, error.status_code, headers, media_type="application/json")


def internal_error_body() -> bytes:
    """For everything that nobody expected; what it was stands in the log and not in the answer."""
    return error_body("the server failed inside; its log says how", 500, "internal_error")


async def internal_error(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this, so that it is logged with its traceback."""
    return Response(internal_error_body(), 500, media_type="application/json")
