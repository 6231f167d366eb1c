"""The client of a server's administration, over its Unix socket or over HTTP with the admin key.

Separate from the commands because of what it imports.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.errors import InstanceError, UsageError
from launcher.front.http.admin_access import read_admin_key
from launcher.front.http.admin_socket import default_path
from launcher.options.ctl import ConnectOptions
from launcher.options.env_prefixes import ADMIN_KEY_VARIABLE

CONNECT_SECONDS = 10.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(str(self._path))
        self.sock.settimeout(None)  # a change takes as long as a model takes to load


class AdminClient:
    """The server to control; each request has its own connection."""

    def __init__(self, options: ConnectOptions) -> None:
        if options.url is not None and options.socket is not None:
            raise UsageError("--url and --socket exclude each other; use one of them")
        self._url = options.url
        self._path = options.socket or (None if options.url else _default_path(options.port))
        self._key = _key(options) if options.url else ""

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """The status and the JSON of a response. Raises ``UsageError`` if nobody listens, and ``InstanceError`` if the
        server goes away."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection()
        try:
            connection.connect()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"no server at {self._url or self._path}: {reason}; use --port, --socket or --url of a running one"
            ) from error
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InstanceError(
                f"the connection to the server was lost, and the state is unknown: {error!r}"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._path is not None:
            return _UnixConnection(self._path)
        parts = urlsplit(self._url or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {self._url}: must be an http:// or https:// URL, such as http://127.0.0.1:8000")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, parts.port)


def _default_path(port: int) -> Path:
    return default_path(port, os.environ)


def _key(options: ConnectOptions) -> str:
    if options.admin_key_file is not None:
        return read_admin_key(options.admin_key_file)
    return os.environ.get(ADMIN_KEY_VARIABLE, "").strip()
