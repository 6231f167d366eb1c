"""Standard error and standard output that are not read, closed or full, and texts that must not control a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.host import log_writer
from launcher.host.log import JsonFormatter, TextFormatter
from launcher.host.log_writer import LogWriter
from launcher.host.model.resolve import demo_folder
from tests.e2e.running import running
from tests.faults.silent import silent

SMALL_PIPE = 4096
LAUNCH = (sys.executable, "-m", "launcher")


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a small pipe."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
    try:
        yield read, write
    finally:
        for descriptor in (read, write):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def fill(write: int) -> int:
    """Fill a pipe; returns the number of bytes written."""
    os.set_blocking(write, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(write, b"x")
    os.set_blocking(write, True)
    return filled


def read_all(read: int, into: bytearray) -> threading.Thread:
    """Read until the other end is closed, in a thread."""

    def run() -> None:
        while data := os.read(read, 65536):
            into.extend(data)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_mode_61_a_log_that_nobody_reads_stops_neither_the_server_nor_its_shutdown() -> None:
    with pipe() as (read, write):
        filled = fill(write)
        with silent("--instances", "2", stderr=write) as server:
            os.close(write)
            server.wait_ready().replace_worker(0)
            assert server.embed().status_code == 200
            assert server.end() == 0
            left = bytearray()
            read_all(read, left).join(60)
            assert bytes(left) == b"x" * filled


@pytest.mark.slow
def test_mode_61_the_log_continues_in_order_when_it_is_read_again() -> None:
    with pipe() as (read, write):
        filled = fill(write)
        with silent("--instances", "1", stderr=write) as server:
            os.close(write)
            server.wait_ready()
            log = bytearray()
            reader = read_all(read, log)
            assert server.end() == 0
            reader.join(60)
            text = bytes(log[filled:]).decode()
            assert [text.count(event) for event in ("started as pid", "ready after", "draining", "ended")] == [1] * 4
            assert text.index("started as pid") < text.index("ready after") < text.index("draining")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full disk", "reader gone", "closed"])
def test_mode_61_a_log_that_cannot_be_written_does_not_end_the_server(kind: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full:
        close = ("sh", "-c", 'exec "$@" >&- 2>&-', "sh") if kind == "closed" else ()
        with silent("--instances", "1", prefix=close, stderr=full if kind == "full disk" else write) as server:
            os.close(write)
            server.wait_ready().replace_worker(0)
            assert server.embed().status_code == 200
            if kind != "closed":
                metrics = server.get("/metrics").text
                dropped = re.search(r"^launcher_log_lines_dropped (\S+)$", metrics, re.MULTILINE)
                assert dropped is not None
                assert float(dropped[1]) > 0
            assert server.end() == 0


def numbered(dropped: int) -> str:
    return f"dropped {dropped}"


def test_lines_that_do_not_fit_are_dropped_counted_and_reported_in_their_place() -> None:
    with pipe() as (read, write):
        writer = LogWriter(write, numbered)
        size = 100
        count = 2 * log_writer.QUEUE_BYTES // size
        for index in range(count):
            writer.put(f"{index:0{size - 1}}")
        assert not writer.flush(0)
        assert 0 < writer.dropped < count
        dropped = writer.dropped
        text = bytearray()
        reader = read_all(read, text)
        assert writer.flush(60)
        writer.put("after")
        writer.close(60)
        os.close(write)
        reader.join(60)
        lines = text.decode().splitlines()
        assert lines[-2:] == [f"dropped {dropped}", "after"]
        assert [int(line) for line in lines[:-2]] == list(range(count - dropped))
        assert writer.dropped == dropped


def test_lines_of_a_full_disk_are_reported_when_it_has_space_again(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        descriptor = os.dup(full.fileno())
    writer = LogWriter(descriptor, numbered)
    for index in range(3):
        writer.put(f"lost {index}")
        assert writer.flush(60)
    assert writer.dropped == 3
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    writer.put("kept")
    writer.close(60)
    os.close(descriptor)
    assert (tmp_path / "log").read_text().splitlines() == ["dropped 3", "kept"]


def test_a_traceback_of_an_uncaught_exception_follows_the_lines_of_the_log() -> None:
    script = (
        "import logging; from launcher.host import log; from launcher.options import LogOptions\n"
        "log.set_up(LogOptions())\n"
        "for i in range(1000): logging.getLogger('launcher.x').info('line %d', i)\n"
        "raise ValueError('the end')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert [line.rpartition(" ")[2] for line in lines[:1000]] == [str(index) for index in range(1000)]
    assert (lines[1000], lines[-1]) == ("Traceback (most recent call last):", "ValueError: the end")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in which ``launch`` is the launcher."""
    script = f'launch() {{ "{sys.executable}" -m launcher "$@"; }}\n{command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["topology", "--help"])
def test_standard_output_that_cannot_be_written_is_an_error_without_a_traceback(command: str) -> None:
    full = shell(f"launch {command} > /dev/full")
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.splitlines()[-1] == "launch: standard output cannot be written: No space left on device"
    assert "Traceback" not in full.stderr
    closed = shell(f"launch {command} >&-")
    assert closed.returncode == 1
    assert closed.stderr.splitlines()[-1] == "launch: standard output cannot be written: Bad file descriptor"


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_causes_no_message() -> None:
    # The reader is gone before anything is written.
    ended = shell("{ sleep 0; launch topology; echo status $? >&2; } | true")
    assert [line for line in ended.stderr.splitlines() if not line.startswith("launch: warning")] == ["status 1"]


@pytest.mark.slow
def test_standard_error_that_cannot_be_written_keeps_the_exit_code() -> None:
    assert shell("launch topology --instances 100000 2> /dev/full").returncode == 3
    assert shell("launch topology --instances 100000 2>&-").returncode == 3
    assert shell("launch --no-such-option 2> /dev/full").returncode == 2


EVIL = "a\nlaunch: all is well\x1b[2J\u202e"
SHOWN = "a\\nlaunch: all is well\\x1b[2J\\u202e"


def run_launch(*arguments: str | bytes, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, env={**os.environ, **(env or {})})


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--model", f"./{EVIL}"),
        ("topology", "--machine", f"/x/{EVIL}"),
        ("topology", "--svg", f"/nowhere/{EVIL}"),
        ("run", "--dry-run", "--instances", "1", "--", "echo", EVIL),
        ("config", "--model", EVIL),
        ("topology", f"--{EVIL}"),
        ("bench", "load", "--url", f"http://127.0.0.1:1/{EVIL}"),
        ("serve", "--host", EVIL),
    ],
    ids=["model", "machine", "svg", "program", "config", "option", "url", "host"],
)
def test_mode_69_control_characters_in_arguments_are_escaped(arguments: tuple[str, ...]) -> None:
    ended = run_launch(*arguments)
    shown = (ended.stdout + ended.stderr).decode()
    assert "Traceback" not in shown
    assert "all is well" in shown
    assert not any(line.startswith("launch: all is well") for line in shown.splitlines())
    assert all(char.isprintable() or char == "\n" for char in shown)


@pytest.mark.slow
def test_mode_69_names_of_variables_and_bytes_that_are_not_utf8_are_escaped() -> None:
    ended = run_launch("topology", "--model", b"./\xff\x1b", env={"LAUNCH_\x1b[2J": "1"})
    shown = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0
    assert "LAUNCH_\\x1b[2J" in shown
    assert "./\\udcff\\x1b" in shown
    assert "\x1b" not in shown


@pytest.mark.slow
def test_mode_69_a_path_of_a_model_is_escaped_in_the_log_and_in_responses(tmp_path: Path) -> None:
    folder = tmp_path / EVIL
    shutil.copytree(demo_folder(verify=False), folder)
    with running("--backend", "fake", "--instances", "1", "--model", str(folder)) as server:
        server.wait_serving()
        unknown = server.post("/v1/embeddings", json={"input": "a", "model": EVIL + "?"}).json()["error"]["message"]
        assert SHOWN in unknown
        assert unknown.isprintable()
        assert server.get("/v1/models").json()["data"][0]["id"] == EVIL
        assert server.get("/metrics").status_code == server.get("/info").status_code == 200
        assert server.end() == 0
    assert server.other_lines == []


def test_mode_69_output_of_a_worker_cannot_forge_lines_or_control_the_terminal() -> None:
    record = {"msg": "%s", "args": (EVIL,), "levelno": logging.INFO, "event": "output", "instance": 0}
    text = TextFormatter(colour=False).format(logging.makeLogRecord(record))
    assert text.endswith(SHOWN)
    json_line = JsonFormatter().format(logging.makeLogRecord(record))
    assert json_line.isprintable()
    assert json.loads(json_line)["message"] == EVIL


@pytest.mark.slow
def test_mode_61_programs_whose_output_is_not_read_can_be_stopped() -> None:
    with pipe() as (read, write):
        fill(write)
        options = ("--instances", "2", "--grace-seconds", "300")
        program = ("sh", "-c", "while :; do echo text; done")
        process = subprocess.Popen([*LAUNCH, "run", *options, "--", *program], stdout=write, stderr=subprocess.PIPE)
        assert process.stderr is not None
        while b"started as pid" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
        process.stderr.close()
        os.close(write)
        assert os.read(read, 1) == b"x"
