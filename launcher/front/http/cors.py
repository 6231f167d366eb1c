"""Cross-origin resource sharing: which web pages may call the API from a browser. Off unless origins are configured.

Credentials of browsers (cookies, client certificates) are never allowed: the API has none, and API keys are sent in
headers that a page sets itself. So every origin can be allowed without a risk for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from launcher.errors import UsageError

ANY = "*"
# Response headers that pages may read, besides those that are always readable.
EXPOSED = ("retry-after", "www-authenticate", "x-launcher-truncated-inputs", "x-launcher-ignored-fields")
PREFLIGHT_SECONDS = 600

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """The origins as browsers send them, in lower case. Raises ``UsageError`` for what is not an origin."""
    return tuple(_checked(origin) for origin in origins)


def _checked(origin: str) -> str:
    lower = origin.lower()
    if origin != ANY and not _ORIGIN.fullmatch(lower):
        raise UsageError(
            f"--cors-origin {origin!r}: must be an origin such as https://app.example.com or http://localhost:3000, "
            "without a path, or * for any"
        )
    return lower


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app`` with the response headers that let pages of these origins call it, and with answers to preflights."""
    return CORSMiddleware(
        app,
        allow_origins=check_origins(origins),
        allow_methods=("GET", "POST", "HEAD", "OPTIONS"),
        allow_headers=(ANY,),  # clients add headers of their own, such as x-stainless-lang
        expose_headers=EXPOSED,
        max_age=PREFLIGHT_SECONDS,
    )
