"""Reports to a service manager: a real server with a real datagram socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.serve.service_manager import ServiceManager
from tests.e2e.running import Launch

FAKE = ("--model", "random:tiny", "--backend", "fake", "--instances", "2")


class Manager:
    """The receiving side of ``sd_notify``."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.settimeout(120)
        self.heard: list[str] = []

    def wait_for(self, assignment: str) -> list[str]:
        """The assignments until one begins with this."""
        before: list[str] = []
        while True:
            message = self.sock.recv(4096).decode().split("\n")
            self.heard += message
            if any(one.startswith(assignment) for one in message):
                return before + message
            before += message


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/notify" if request.param == "path" else f"@launcher-test-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    found = Manager(address)
    with found.sock:
        yield found


@pytest.mark.slow
def test_ready_reload_watchdog_and_stop_are_reported(launch: Launch, manager: Manager, address: str) -> None:
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    with launch(*FAKE, env=env) as server:
        before = manager.wait_for("READY=1")
        assert f"MAINPID={server.process.pid}" in before
        assert "STATUS=not ready: 0 of 2 instances are ready" in before
        assert server.get("/ready").status_code == 200
        server.wait_serving()
        manager.wait_for("STATUS=2 of 2 instances are ready")
        manager.wait_for("WATCHDOG=1")
        manager.wait_for("WATCHDOG=1")
        for process in (server.process.pid, *(worker.pid for worker in server.workers())):
            environment = psutil.Process(process).environ()
            assert "NOTIFY_SOCKET" not in environment or process == server.process.pid, "meant for the server alone"
        server.signal(signal.SIGHUP)
        assert any(one.startswith("MONOTONIC_USEC=") for one in manager.wait_for("RELOADING=1"))
        manager.wait_for("READY=1")
        server.signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert server.process.wait(60) == 0


@pytest.mark.slow
def test_a_stopped_front_gives_no_sign_of_life(launch: Launch, manager: Manager, address: str) -> None:
    with launch(*FAKE, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}) as server:
        server.wait_serving()
        manager.wait_for("READY=1")
        server.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        manager.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while manager.sock.recv(4096):
                pass
        manager.sock.settimeout(1.0)  # five times the interval
        with pytest.raises(TimeoutError):
            manager.sock.recv(4096)
        server.signal(signal.SIGCONT)
        manager.sock.settimeout(120)
        manager.wait_for("WATCHDOG=1")
        assert server.end() == 0


def test_messages_are_kept_while_the_queue_is_full(manager: Manager, address: str) -> None:
    sender = ServiceManager({"NOTIFY_SOCKET": address})
    for number in range(2000):
        sender.status(f"state {number}")
    sender.ready()
    manager.sock.settimeout(10)
    while "READY=1" not in manager.heard:
        manager.wait_for("")
        sender.flush()
    assert f"STATUS=state {1999}" in manager.heard
    sender.close()


def test_a_reload_during_the_start_does_not_report_that_the_start_has_ended(manager: Manager, address: str) -> None:
    sender = ServiceManager({"NOTIFY_SOCKET": address})
    sender.reloading()
    sender.reloaded()
    sender.status("loading")
    assert manager.wait_for("STATUS=") == ["STATUS=loading"]
    sender.ready()
    manager.wait_for("READY=1")
    sender.reloading()
    sender.reloaded()
    assert any(one == "RELOADING=1" for one in manager.wait_for("READY=1"))
    sender.close()


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert ServiceManager(environment).watchdog_seconds is None
    assert environment == {}
    own = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceManager(own).watchdog_seconds == 1.0


@pytest.mark.parametrize("address", ["", "relative", "/no/such/folder/socket"])
def test_without_a_service_manager_nothing_is_sent(address: str) -> None:
    sender = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    sender.ready()
    sender.alive()
    assert not sender.present
