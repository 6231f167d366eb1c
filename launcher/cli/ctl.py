"""The commands under ``launch ctl``: they ask a running server to change, and show the change while it happens."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from launcher.errors import InstanceError, UsageError
from launcher.options.ctl import ConnectOptions, CtlOptions, PlanChangeOptions
from launcher.options.option import options_of
from launcher.options.sources import Resolved
from launcher.printable import printable

if TYPE_CHECKING:
    from launcher.cli.admin_client import AdminClient

POLL_SECONDS = 0.2


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
    """Show the instances of a running server, and their last change."""
    server = _connect(options.connect)
    _, ready = server.request("GET", "/ready")
    code, change = server.request("GET", "/admin/change")
    if code != 200:
        _refused(code, change)
    if options.format.json:
        _print_json({**ready, "change": change})
        return
    print("ready" if ready["ready"] else "not ready")
    for id, state in ready["instances"].items():
        reason = f": {printable(state['reason'])}" if state["reason"] else ""
        print(f"instance {id}: {state['state']} for {state['for_seconds']:.0f} s{reason}")
    print("no change so far" if change["state"] == "none" else _sentence(change))
    for reason in change["degraded"]:
        print(f"degraded: {reason}")


def _change(options: CtlOptions, path: str, body: Mapping[str, Any]) -> None:
    """Ask for a change and wait for its end, which decides the exit status."""
    server = _connect(options.connect)
    ended = threading.Event()
    if not options.format.json:
        threading.Thread(target=_show_progress, args=(_connect(options.connect), ended), daemon=True).start()
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


def _show_progress(server: AdminClient, ended: threading.Event) -> None:
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
    reason = f": {printable(change['reason'])}" if change["reason"] else ""
    return f"{change['kind']}: {state} after {change['seconds']:.1f} s, instances {ids}{reason}"


def _refused(code: int, body: Mapping[str, Any]) -> NoReturn:
    """Raise the error that the server has answered with."""
    message = body.get("error", {}).get("message", f"the server answered with status {code}")
    raise (InstanceError if code >= 500 else UsageError)(message)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _connect(options: ConnectOptions) -> AdminClient:
    from launcher.cli.admin_client import AdminClient  # imports ssl, which other commands do not need

    return AdminClient(options)
