"""What a changed configuration changes in a running server."""

from __future__ import annotations

import asyncio

import pytest

from launcher.options import ServeOptions, from_flat, to_flat
from launcher.serve.reload import LIVE, after_reload, changes
from launcher.serve.server import Server
from launcher.serve.service_manager import ServiceManager

OLD = from_flat(ServeOptions, {"drain_seconds": 20.0, "port": 8001, "instances": 2})
NEW = from_flat(ServeOptions, {"drain_seconds": 5.0, "port": 8002, "log_level": "debug", "max_failures": 9})


def test_only_options_that_a_running_server_reads_again_change() -> None:
    found = to_flat(after_reload(OLD, NEW))
    assert (found["drain_seconds"], found["log_level"], found["max_failures"]) == (5.0, "debug", 9)
    assert (found["port"], found["instances"]) == (8001, 2)


def test_each_change_is_named_with_both_values() -> None:
    told = {str(change): change.live for change in changes(OLD, NEW)}
    assert told == {
        "instances: 2 -> auto": False,
        "port: 8001 -> 8002": False,
        "drain-seconds: 20.0 -> 5.0": True,
        "max-failures: 5 -> 9": True,
        "log-level: info -> debug": True,
    }


def test_the_same_configuration_changes_nothing() -> None:
    assert changes(OLD, OLD) == ()
    assert after_reload(OLD, OLD) == OLD


def test_every_live_option_exists() -> None:
    assert set(to_flat(ServeOptions())) >= LIVE


def test_a_reload_that_fails_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server.__new__(Server)
    server._manager, server._draining, server._reloading = ServiceManager({}), False, True

    def fails() -> bool:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server, "_reconfigure", fails)
    asyncio.run(server._reload())
    assert not server._reloading
    assert "can't start new thread" in caplog.text
