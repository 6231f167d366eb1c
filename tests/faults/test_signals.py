"""Signals to a server and to its workers, from its first second to its end, and what a killed server leaves behind."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from launcher.host.process.subreaper import IGNORED_SIGNALS
from launcher.signal_sets import TERMINAL_STOPS, UNUSED_SIGNALS
from tests.e2e.running import Launch, gone, wait_in_flight

pytestmark = pytest.mark.slow

FAKE = ("--model", "random:tiny", "--backend", "fake", "--instances", "2")
ROOT = Path(__file__).parents[2]
WORKER_ALSO_IGNORES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPWR, signal.SIGPIPE)

# -- the front dies -----------------------------------------------------------------------------------------------


def test_mode_13_kill_9_of_the_front_leaves_no_worker(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        pids = [p.pid for p in server.workers()]
        server.signal(signal.SIGKILL)
        server.process.wait(60)
        assert gone(pids)


def test_mode_13_kill_9_of_the_front_while_models_load_leaves_no_worker(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--instances", "2") as server:
        server.wait_for("loading")
        pids = [p.pid for p in server.workers()]
        assert len(pids) == 2
        server.signal(signal.SIGKILL)
        server.process.wait(60)
        assert gone(pids)


def test_mode_14_lost_workers_are_reaped(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        for _ in range(3):
            os.kill(server.worker_of(0), signal.SIGKILL)
            server.wait_for("ready", instance=0)
        children = psutil.Process(server.process.pid).children()
        assert len(children) == 2
        assert psutil.STATUS_ZOMBIE not in {child.status() for child in children}


def test_mode_15_workers_are_executed_not_only_forked(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        front = psutil.Process(server.process.pid)
        assert front.num_threads() > 1, "a fork would copy locks held by other threads"
        for worker in server.workers():
            assert "launcher.worker" in worker.cmdline()
            assert "launcher" in front.cmdline()
            assert worker.cmdline() != front.cmdline()


def test_mode_15_only_processes_without_threads_are_forked() -> None:
    forking = {
        str(path.relative_to(ROOT / "launcher"))
        for path in (ROOT / "launcher").rglob("*.py")
        if any(word in path.read_text() for word in ("os.fork(", "preexec_fn=", '"fork"', "forkserver"))
    }
    # The first forks at the very start of `launch run`, the second is a single-threaded measuring tool.
    assert forking == {"host/process/subreaper.py", "bench/echo.py"}


# -- stop ---------------------------------------------------------------------------------------------------------


def test_mode_34_sigterm_while_models_load_exits_at_once(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--instances", "2") as server:
        server.wait_for("loading")
        pids = [p.pid for p in server.workers()]
        assert server.end() == 0
        assert gone(pids)
        assert "ready" not in server.events_until_end(), "it waited for the models"


def test_mode_36_a_second_signal_exits_at_once(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        for worker in server.workers():
            worker.suspend()
        pids = [p.pid for p in server.workers()]
        thread = threading.Thread(target=lambda: server.embed("a request that is never answered"), daemon=True)
        thread.start()
        wait_in_flight(server, 1)
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        server.signal(signal.SIGTERM)
        assert server.process.wait(20) is not None, "it waited for the request, for which a drain has 30 s"
        assert gone(pids)


def test_mode_37_a_port_in_use_is_reported_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "launcher", *FAKE, "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert port in done.stderr
    assert "--port" in done.stderr
    assert "started as pid" not in done.stderr


def test_mode_35_sigterm_under_load_loses_no_response(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--dtype", "fp32", "--instances", "2") as server:
        server.wait_serving()
        pids = [p.pid for p in server.workers()]
        outcomes: list[int | str] = []
        lock = threading.Lock()

        def client(seed: int) -> None:
            with httpx.Client(timeout=30) as session:
                for number in range(1000):
                    texts = [f"client {seed} sends text {number} " * (1 + (seed + number) % 9)] * (1 + number % 5)
                    try:
                        reply = session.post(server.address + "/v1/embeddings", json={"input": texts})
                    except httpx.ConnectError:
                        return  # refused before anything was sent: the listening socket is closed
                    except httpx.HTTPError as error:
                        with lock:
                            outcomes.append(repr(error))
                        return
                    complete = reply.status_code == 200 and len(reply.json()["data"]) == len(texts)
                    with lock:
                        outcomes.append(200 if complete else reply.status_code)
                    if reply.status_code != 200:
                        return

        threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while len(outcomes) < 100:
            assert time.monotonic() < deadline
        assert server.end(30) == 0
        for thread in threads:
            thread.join(60)
        assert gone(pids)
        assert set(outcomes) <= {200, 503}, outcomes[-20:]
        assert outcomes.count(200) >= 100


def test_mode_34_sigterm_while_bindings_are_probed_ends_before_any_worker(tmp_path: Path) -> None:
    numactl, probes = tmp_path / "numactl", tmp_path / "probes"
    sleep = f"exec {sys.executable} -c 'import time; time.sleep(100)' \"$@\""
    numactl.write_text(f"#!/bin/sh\necho $$ >> {probes}\n{sleep}\n")
    numactl.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "launcher", *FAKE, "--port", "0", "--probe-seconds", "100"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        probes.touch()
        while len(probes.read_text().split()) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "stopped before an instance was started" in log
    assert "started as pid" not in log
    assert gone([int(pid) for pid in probes.read_text().split()])


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_mode_35_clients_that_connect_during_the_whole_drain_are_never_reset(
    launch: Launch, tmp_path: Path, transport: str
) -> None:
    request = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n"
    path = str(tmp_path / "socket")
    with launch(*FAKE, *(("--uds", path) if transport == "unix" else ())) as server:
        server.wait_serving()
        answers: list[bytes] = []
        failures: list[bytes] = []

        def connect() -> socket.socket:
            if transport == "tcp":
                host, port = server.address.removeprefix("http://").split(":")
                return socket.create_connection((host, int(port)), timeout=60)
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(path)
            return connection

        def client() -> None:
            while True:
                try:
                    connection = connect()
                except OSError:
                    return  # refused: nothing was accepted, so nothing is lost
                with connection:
                    try:
                        connection.sendall(request + b'{"input": "a"}')
                        answer = connection.recv(4096)[:12]
                    except OSError as error:
                        answer = repr(error).encode()
                (answers if answer.startswith(b"HTTP/1.1 ") else failures).append(answer)

        threads = [threading.Thread(target=client) for _ in range(24)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(answers) < 200:
            assert time.monotonic() < deadline, failures
            time.sleep(0.01)
        assert server.end(60) == 0
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert set(answers) == {b"HTTP/1.1 200", b"HTTP/1.1 503"}


def test_mode_38_a_server_starts_on_the_port_of_a_killed_one(launch: Launch) -> None:
    with launch(*FAKE) as server:
        port = server.wait_serving().address.rpartition(":")[2]
        with httpx.Client() as session:  # its connection outlives the server
            assert session.get(server.address + "/health").status_code == 200
            server.signal(signal.SIGKILL)
            server.process.wait(60)
            with launch(*FAKE, "--port", port) as second:
                assert second.wait_serving().embed("again").status_code == 200


# -- every other signal -------------------------------------------------------------------------------------------


def test_mode_66_no_signal_that_means_nothing_ends_a_server_or_a_worker(launch: Launch) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        pids = [p.pid for p in server.workers()]
        for number in (
            *UNUSED_SIGNALS,
            *TERMINAL_STOPS,
            signal.SIGPIPE,
            signal.SIGWINCH,
            signal.SIGURG,
            signal.SIGCONT,
        ):
            server.signal(number)
        for pid in pids:
            for number in (*UNUSED_SIGNALS, *TERMINAL_STOPS, *WORKER_ALSO_IGNORES):
                os.kill(pid, number)
        server.wait_for("signal", message="SIGUSR2 has no effect; SIGTERM drains, SIGHUP reloads")
        assert server.embed("still here").status_code == 200
        assert [p.pid for p in server.workers()] == pids
        assert server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU])
def test_mode_66_signals_that_ask_to_end_drain_first(launch: Launch, number: int) -> None:
    with launch(*FAKE) as server:
        server.wait_serving()
        workers = server.workers()
        for worker in workers:
            worker.suspend()
        replies: list[int] = []
        thread = threading.Thread(target=lambda: replies.append(server.embed("a b c d e f").status_code))
        thread.start()
        wait_in_flight(server, 1)
        server.signal(number)
        if number != signal.SIGQUIT:
            server.signal(number)  # repeated by the kernel or by init, which asks for no more
        server.wait_for("draining")
        for worker in workers:
            worker.resume()
        assert server.process.wait(60) == 0
        thread.join(60)
        assert replies == [200]


def test_mode_66_launch_run_ignores_what_it_does_not_forward() -> None:
    code = "import sys, time; print('up', flush=True); time.sleep(100)"
    command = [sys.executable, "-m", "launcher", "run", "--instances", "1", "--", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        halves = [process.pid, *(p.pid for p in psutil.Process(process.pid).children())]
        for pid in halves:
            for number in (*IGNORED_SIGNALS, *TERMINAL_STOPS):
                os.kill(pid, number)
        process.send_signal(signal.SIGPWR)
        _, log = process.communicate(timeout=60)
    assert "SIGPWR received: sending SIGTERM" in log
    assert process.returncode == 128 + signal.SIGTERM


def test_mode_66_programs_of_launch_run_start_with_default_signals() -> None:
    code = "import signal; print([n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN])"
    command = [sys.executable, "-m", "launcher", "run", "--instances", "1", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{[signal.SIGPIPE, signal.SIGXFSZ]}\n", "Python itself ignores these two"


@pytest.mark.parametrize("ignored", ["INT", "INT QUIT HUP"])
def test_signals_that_a_shell_ignores_for_background_commands_stay_ignored(launch: Launch, ignored: str) -> None:
    with launch(*FAKE, prefix=("sh", "-c", f'trap "" {ignored}; exec "$@"', "sh")) as server:
        server.wait_serving()
        for name in ignored.split():
            if name != "HUP":
                server.signal(getattr(signal, f"SIG{name}"))
        assert server.embed("still here").status_code == 200
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert server.events_until_end().count("draining") == 1


@pytest.mark.parametrize("nohup", [False, True])
def test_a_server_drains_when_its_terminal_is_closed_unless_under_nohup(launch: Launch, nohup: bool) -> None:
    master, terminal = pty.openpty()
    # The controlling terminal of a new session, as that of a shell in a terminal window.
    code = (
        "import fcntl, os, signal, sys, termios; os.setsid(); "
        "fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), termios.TIOCSCTTY, 0); "
        f"signal.signal(signal.SIGHUP, {'signal.SIG_IGN' if nohup else 'signal.SIG_DFL'}); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    prefix = (sys.executable, "-c", code, os.ttyname(terminal))
    with launch(*FAKE, prefix=prefix) as server:
        server.wait_serving()
        os.close(terminal)
        os.close(master)
        if nohup:
            server.wait_for(
                "signal", message="SIGHUP has no effect; the terminal was closed, and the server runs under nohup"
            )
            assert server.end() == 0
        else:
            assert server.process.wait(60) == 0
            assert "draining" in server.events_until_end()


# -- SIGHUP ---------------------------------------------------------------------------------------------------------


def test_sighup_applies_what_can_change_and_names_what_cannot(launch: Launch, tmp_path: Path) -> None:
    config = tmp_path / "launch.toml"
    config.write_text("drain-seconds = 900.0\nmax-queue-items = 100\nkeep-alive-seconds = 900.0\n")
    with launch(*FAKE, "--config", str(config)) as server:
        server.wait_serving()
        before = [one["pid"] for one in server.info()["instances"]]
        config.write_text("drain-seconds = 0.0\nmax-queue-items = 200\nkeep-alive-seconds = 0.1\n")
        server.signal(signal.SIGHUP)
        assert f"read {config} again" in server.wait_for("reloading")["message"]
        assert server.wait_for("option_changed")["message"] == "changed: keep-alive-seconds: 900.0 -> 0.1"
        assert server.wait_for("option_changed")["message"] == "changed: drain-seconds: 900.0 -> 0.0"
        unchanged = server.wait_for("option_unchanged")
        assert (unchanged["option"], unchanged["level"]) == ("max-queue-items", "warning")
        for instance in (0, 1):
            server.wait_for("ready", instance=instance)
        assert not {one["pid"] for one in server.info()["instances"]} & set(before)
        assert server.embed("still here").status_code == 200
        with socket.create_connection(server.address.removeprefix("http://").split(":"), timeout=60) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            while connection.recv(4096):
                pass  # until the server closes the idle connection, after the new timeout
        for worker in server.workers():
            worker.suspend()
        thread = threading.Thread(target=lambda: server.embed("a request that is never answered"))
        thread.start()
        wait_in_flight(server, 1)
        assert server.end(120) == 0, "it waits with the old timeout"
        thread.join(60)


def test_sighup_refuses_a_broken_file_and_changes_nothing(launch: Launch, tmp_path: Path) -> None:
    config = tmp_path / "launch.toml"
    config.write_text("drain-seconds = 20.0\n")
    with launch(*FAKE, "--config", str(config)) as server:
        server.wait_serving()
        before = [one["pid"] for one in server.info()["instances"]]
        for broken in ("drain-seconds = ", "no-such-option = 1\n", "port = -1\n", None):
            config.unlink() if broken is None else config.write_text(broken)
            server.signal(signal.SIGHUP)
            refused = server.wait_for("reload_refused")
            assert refused["level"] == "error"
            assert str(config) in refused["message"]
        assert server.embed("still here").status_code == 200
        assert [one["pid"] for one in server.info()["instances"]] == before
        assert server.end() == 0
