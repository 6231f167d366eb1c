"""The commands under ``launch ctl``: they ask a running server to change, and show the change while it happens."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from launcher.errors import InstanceError, UsageError
from launcher.options.ctl import ConnectOptions, CtlOptions, PlanChangeOptions
from launcher.options.env_prefixes import ADMIN_KEY_VARIABLE
from launcher.options.option import options_of
from launcher.options.sources import Resolved

POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0


def restart(options: CtlOptions) -> None:
    """Restart all instances of a running server, one after another, while it answers requests."""
    _change(options, "/admin/restart", {})


def plan(options: CtlOptions, wanted: PlanChangeOptions, given: Resolved) -> None:
    """Change the instances of a running server (their number, sizes or classes) while it answers requests."""
    names = {each.name for each in options_of(PlanChangeOptions)} - {"order"}
    values = {name: value for name, value in given.given(PlanChangeOptions).items() if name in names}
    body = {name: "auto" if value is None else value for name, value in values.items()}
    _change(options, "/admin/plan", {**body, "order": wanted.order})


def status(options: CtlOptions) -> None:
    """Show the instances of a running server, and the last change of them."""
    server = _Server(options.connect)
    _, ready = server.request("GET", "/ready")
    code, change = server.request("GET", "/admin/change")
    if code != 200:
        _refused(code, change)
    if options.format.json:
        _print_json({**ready, "change": change})
        return
    print("ready" if ready["ready"] else "not ready")
    for id, state in ready["instances"].items():
        reason = f": {state['reason']}" if state["reason"] else ""
        print(f"instance {id}: {state['state']} for {state['for_seconds']:.0f} s{reason}")
    print("no change so far" if change["state"] == "none" else _sentence(change))


def _change(options: CtlOptions, path: str, body: Mapping[str, Any]) -> None:
    """Ask for a change and wait for its end, which decides the exit status."""
    server = _Server(options.connect)
    ended = threading.Event()
    if not options.format.json:
        threading.Thread(target=_show_progress, args=(_Server(options.connect), ended), daemon=True).start()
    try:
        code, change = server.request("POST", path, body)
    finally:
        ended.set()
    if code != 200:
        _refused(code, change)
    if options.format.json:
        _print_json(change)
    else:
        print(_sentence(change))
    if change["state"] != "new":
        sys.exit(1)


def _show_progress(server: _Server, ended: threading.Event) -> None:
    """Print each new state of the change in progress."""
    last = ""
    while not ended.wait(POLL_SECONDS):
        try:
            code, change = server.request("GET", "/admin/change")
        except (UsageError, InstanceError):  # the command itself reports it
            return
        if code != 200 or change["state"] in ("none", "new", "old"):
            continue
        sentence = f"{change['state']} ({change['steps_done']} of {change['steps']} steps done)"
        if sentence != last and not ended.is_set():
            print(sentence, flush=True)
            last = sentence


def _sentence(change: Mapping[str, Any]) -> str:
    """The change in words."""
    ids = ", ".join(map(str, change["instances"])) or "none"
    state = {"new": "new state", "old": "old state"}.get(change["state"], change["state"])
    reason = f": {change['reason']}" if change["reason"] else ""
    return f"{change['kind']}: {state} after {change['seconds']:.1f} s, instances {ids}{reason}"


def _refused(code: int, body: Mapping[str, Any]) -> NoReturn:
    """Raise the error that the server has answered with."""
    message = body.get("error", {}).get("message", f"the server answered with status {code}")
    raise (InstanceError if code >= 500 else UsageError)(message)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


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


class _Server:
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
    from launcher.front.http.admin_socket import default_path

    return default_path(port, os.environ)


def _key(options: ConnectOptions) -> str:
    from launcher.front.http.admin_access import read_admin_key

    if options.admin_key_file is not None:
        return read_admin_key(options.admin_key_file)
    return os.environ.get(ADMIN_KEY_VARIABLE, "").strip()
