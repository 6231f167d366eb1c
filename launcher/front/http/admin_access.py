"""Who may use the routes under ``/admin``, and what these routes need from the server.

Separate from the routes so that a key is compared in one place, and never logged or shown. On the Unix socket of the
administration, which only its owner can open, no key is needed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request

from launcher.core.lifecycle.change import Order
from launcher.errors import RequestError, UsageError
from launcher.options.env_prefixes import ADMIN_KEY_VARIABLE

MAX_KEY_BYTES = 4096


class AdminActions(Protocol):
    """What an administrator can do. Each method raises ``RequestError``."""

    async def restart(self, *, wait: bool) -> Mapping[str, Any]:
        """Restart all instances, one after another; returns the change, with ``wait`` when it has ended."""

    async def plan(self, options: Mapping[str, object], order: Order, *, wait: bool) -> Mapping[str, Any]:
        """Change to the plan for these options."""

    def change(self) -> Mapping[str, Any]:
        """The change in progress, or else the last one; its state is ``none`` if there was none."""

    def clear_quarantine(self) -> int:
        """Accept quarantined inputs again; returns their number."""
        ...


@dataclass(frozen=True, slots=True)
class AdminAccess:
    """``trusted``: whoever can connect may do everything. Otherwise a key is needed; None: no key is configured."""

    digest: bytes | None = None
    trusted: bool = False

    def check(self, request: Request) -> None:
        """Raise ``RequestError`` unless the request may use the administration."""
        if self.trusted:
            return
        if self.digest is None:
            raise RequestError(
                "administration over HTTP is disabled; use the Unix socket of --admin-socket (launch ctl finds it), or "
                f"set --admin-key-file or {ADMIN_KEY_VARIABLE} on the server",
                status=403,
                code="administration_closed",
            )
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self.digest):
            raise RequestError(
                "the admin key is missing or wrong; send it in the header Authorization: Bearer KEY",
                status=401,
                code="invalid_admin_key",
            )


@dataclass(frozen=True, slots=True)
class Administration:
    """The administration of one server, and who may use it."""

    actions: AdminActions
    access: AdminAccess


def load_admin_access(file: Path | None, environment: Mapping[str, str]) -> AdminAccess:
    """The access over TCP: with the key of a file, or else of ``LAUNCH_ADMIN_KEY``. Raises ``UsageError``, which never
    contains a key."""
    if file is None:
        key, source = environment.get(ADMIN_KEY_VARIABLE, ""), ADMIN_KEY_VARIABLE
        if not key:
            return AdminAccess()
    else:
        key, source = read_admin_key(file), f"--admin-key-file {str(file)!r}"
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{source}: must be one key of visible ASCII characters")
    return AdminAccess(_digest(key))


def read_admin_key(file: Path) -> str:
    """The contents of a key file. Raises ``UsageError``."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--admin-key-file {str(file)!r} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_KEY_BYTES:
        raise UsageError(f"--admin-key-file {str(file)!r} has more than {MAX_KEY_BYTES} bytes; it must hold one key")
    return content.decode("latin-1").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
