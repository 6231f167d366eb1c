"""One worker process: what it inherits, its output, and the description of its exit. All processes are real."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import InstanceError
from launcher.host.process.exit_status import describe_status
from launcher.host.process.output import LineSplitter
from launcher.host.process.spawn_worker import (
    LINE_BYTES,
    Launch,
    OomCount,
    own_memory_cgroup,
    read_oom_count,
    start,
)

pytestmark = pytest.mark.anyio
DENY = Path(__file__).parents[1] / "deny.py"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


def python(code: str, *, instance: int = 0, env: dict[str, str] | None = None) -> Launch:
    """A worker that runs ``code`` in an interpreter without site-packages, which starts in 10 ms."""
    command = (sys.executable, "-I", "-S", "-c", code)
    return Launch(instance, command, {"PATH": os.environ["PATH"]} if env is None else env)


async def outcome(code: str) -> str:
    worker = start(python(code))
    with worker.sock:
        return await worker.wait()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def runs(pid: int) -> bool:
    """Exists and is not a zombie: init reaps orphans, but not at once."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether ``condition`` became true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  # it happens in another process
        await anyio.sleep(0.005)
    return condition()


async def test_a_worker_gets_its_channel_on_descriptor_0_and_no_other_descriptor(tmp_path: Path) -> None:
    leak = (tmp_path / "held by the front").open("w")
    os.set_inheritable(leak.fileno(), True)
    code = """
import json, os, socket
channel = socket.socket(fileno=0)
facts = {'fds': sorted(int(fd) for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)),
         'family': channel.family.name, 'session': os.getsid(0) == os.getpid(),
         'env': dict(os.environ)}
channel.sendall(json.dumps(facts).encode())
"""
    with leak:
        worker = start(python(code, env={"OMP_NUM_THREADS": "3", "LC_CTYPE": "C.UTF-8"}))
        assert await worker.wait() == "exit status 0"
    worker.sock.setblocking(True)
    with worker.sock:
        facts = json.loads(worker.sock.recv(65536))
    # Listing the folder itself uses a descriptor, which is closed afterwards.
    assert facts["fds"] == [0, 1, 2]
    assert facts["family"] == "AF_UNIX"
    assert facts["session"], "Ctrl-C in the terminal must not reach it"
    assert facts["env"] == {"OMP_NUM_THREADS": "3", "LC_CTYPE": "C.UTF-8"}


async def test_the_channel_reads_end_of_file_as_soon_as_the_worker_exits() -> None:
    worker = start(python("import time; time.sleep(60)"))
    os.kill(worker.pid, signal.SIGKILL)
    with worker.sock, anyio.fail_after(60):
        await anyio.wait_readable(worker.sock)
        assert worker.sock.recv(1) == b""
        assert (await worker.wait()).startswith("killed by SIGKILL")


async def test_both_outputs_are_logged_line_by_line_with_the_instance(caplog: pytest.LogCaptureFixture) -> None:
    code = """
import sys
print('one'); print('two\\n\\nthree', file=sys.stderr); sys.stdout.flush()
sys.stdout.buffer.write(b'broken \\xff byte\\rnext'); sys.stdout.flush()
"""
    caplog.set_level(logging.INFO, "launcher.worker")
    worker = start(python(code, instance=7))
    with worker.sock:
        await worker.wait()
    said = [(record.getMessage(), record.__dict__["instance"], record.__dict__["event"]) for record in caplog.records]
    lines = [line for line, _, _ in said]
    assert sorted(lines) == sorted(["one", "two", "three", "broken \ufffd byte", "next"])
    assert {(instance, event) for _, instance, event in said} == {(7, "output")}


async def test_output_is_logged_while_the_worker_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "launcher.worker")
    worker = start(python("import socket; print('loading', flush=True); socket.socket(fileno=0).recv(1)"))
    async with anyio.create_task_group() as group:
        group.start_soon(worker.wait)
        assert await until(lambda: "loading" in caplog.messages)
        assert exists(worker.pid)
        worker.sock.close()


async def test_more_output_than_a_pipe_holds_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "launcher.worker")
    with anyio.fail_after(60):
        assert await outcome("print('x' * 300_000); print('end')") == "exit status 0"
    assert caplog.messages[-1] == "end"
    assert sum(len(line) for line in caplog.messages[:-1]) == 300_000
    assert max(len(line) for line in caplog.messages) <= LINE_BYTES


@pytest.mark.parametrize(
    ("code", "described"),
    [
        ("", "exit status 0"),
        ("raise SystemExit(4)", "exit status 4"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        (
            "import sys; print('first', flush=True); sys.exit('no such weights')",
            "exit status 1; last output: 'no such weights'",
        ),
    ],
)
async def test_an_exit_is_described(code: str, described: str) -> None:
    found = await outcome(code)
    # Another process that the OOM killer kills in the meantime is mentioned after a SIGKILL.
    assert re.sub(r" \(probably out of memory: .*\)$", "", found) == described


@pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed")
async def test_an_error_of_numactl_is_reported_without_its_usage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "launcher.worker")
    worker = start(Launch(0, ("numactl", "-C", "4090", "true"), {"PATH": os.environ["PATH"]}))
    with worker.sock:
        described = await worker.wait()
    assert described.startswith("exit status 1; last output: ")
    assert "4090" in described
    assert len(caplog.messages) <= 2


@pytest.mark.parametrize("prefix", [(), ("numactl", "-C")])
async def test_a_bound_front_starts_workers_with_its_previous_mask(prefix: tuple[str, ...]) -> None:
    if prefix and shutil.which("numactl") is None:
        pytest.skip("numactl is not installed")
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two cpus")
    first, *_, last = sorted(before)
    code = f"import os; assert os.sched_getaffinity(0) == set({sorted([last] if prefix else before)})"
    bound = (*prefix, *([str(last)] if prefix else []), *python(code).command)
    launch = Launch(0, bound, {"PATH": os.environ["PATH"]}, mask=tuple(before))
    os.sched_setaffinity(0, [first])
    try:
        worker = start(launch)
        assert os.sched_getaffinity(0) == {first}
    finally:
        os.sched_setaffinity(0, before)
    with worker.sock:
        assert await worker.wait() == "exit status 0"


async def test_a_mask_without_allowed_cpus_does_not_prevent_a_start() -> None:
    launch = python("pass")
    worker = start(Launch(0, launch.command, launch.env, mask=(4090,)))
    with worker.sock:
        assert await worker.wait() == "exit status 0"


async def test_a_segmentation_fault_in_native_code_is_named() -> None:
    assert (await outcome("import ctypes; ctypes.string_at(0)")).startswith("killed by SIGSEGV")


async def test_a_killed_worker_is_described_by_the_reason_for_it() -> None:
    worker = start(python("import time; time.sleep(60)"))
    with worker.sock:
        worker.kill("batch 5 takes 9 s, 5 times what was predicted")
        assert await worker.wait() == "killed: batch 5 takes 9 s, 5 times what was predicted"
        worker.kill("again")  # it is reaped, and its pid may belong to another process


async def test_a_stopped_worker_can_be_killed() -> None:
    worker = start(python("import time; time.sleep(60)"))
    os.kill(worker.pid, signal.SIGSTOP)
    with worker.sock, anyio.fail_after(60):
        worker.kill("hangs")
        assert await worker.wait() == "killed: hangs"


def test_signals_without_a_name_are_described_by_number() -> None:
    assert describe_status(-40) == "killed by signal 40"
    assert describe_status(-signal.SIGTERM) == "killed by SIGTERM"


async def test_an_exited_worker_leaves_no_zombie() -> None:
    worker = start(python(""))
    with worker.sock:
        await worker.wait()
    assert not exists(worker.pid)


async def test_children_of_a_worker_are_killed_with_it() -> None:
    code = """
import os, socket
child = os.fork()
if child == 0:
    import time; time.sleep(60)
socket.socket(fileno=0).send(str(child).encode())
"""
    worker = start(python(code))
    with worker.sock, anyio.fail_after(60):
        assert await worker.wait() == "exit status 0"
        child = int(worker.sock.recv(100))
        assert await until(lambda: not runs(child))


async def test_a_grandchild_that_holds_the_pipe_does_not_delay_the_report() -> None:
    code = """
import os, socket
child = os.fork()
if child == 0:
    os.setsid()
    import time; time.sleep(60)
while os.getsid(child) != child: pass
socket.socket(fileno=0).send(str(child).encode())
"""
    worker = start(python(code))
    with worker.sock:
        assert await worker.wait() == "exit status 0"
        child = int(worker.sock.recv(100))
        assert runs(child), "the report must not wait for it"
        os.kill(child, signal.SIGKILL)


async def test_a_command_that_does_not_exist_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(InstanceError, match=r"instance 3 could not be started as '/no/such/program': .*No such file"):
        start(Launch(3, ("/no/such/program",), {}))
    (tmp_path / "not executable").write_text("")
    with pytest.raises(InstanceError, match="Permission denied"):
        start(Launch(3, (str(tmp_path / "not executable"),), {}))
    with pytest.raises(InstanceError, match="null byte"):
        start(Launch(3, ("/bin/true", "\0"), {}))
    assert descriptors() == before


async def test_many_workers_leave_no_descriptor_and_no_thread_behind() -> None:
    await outcome("")
    before, threads = descriptors(), threading.active_count()
    for _ in range(10):
        await outcome("")
    assert descriptors() == before
    assert threading.active_count() == threads


PIDFD_OPEN = 434  # the same on every machine: include/uapi/asm-generic/unistd.h and the newer tables
WITHOUT_PIDFD = """
import anyio, sys
from launcher.host.process.exit_status import describe_status
from launcher.host.process.spawn_worker import Launch, start
async def main():
    worker = start(Launch(0, (sys.executable, '-I', '-S', '-c', 'import os; os.kill(os.getpid(), 11)'), {}))
    print(await worker.wait())
anyio.run(main)
"""


def test_without_pidfd_the_exit_is_still_seen() -> None:
    command = [sys.executable, str(DENY), f"{PIDFD_OPEN}:{errno.ENOSYS}", sys.executable, "-c", WITHOUT_PIDFD]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert ran.stdout == "killed by SIGSEGV\n"


def test_growth_of_the_oom_counters_is_reported() -> None:
    before = OomCount(None, in_cgroup=1, on_machine=5)
    assert before.growth(OomCount(None, 1, 5)) is None
    assert "this cgroup" in (before.growth(OomCount(None, 2, 6)) or "")
    assert "this machine" in (before.growth(OomCount(None, 1, 6)) or "")
    assert OomCount(None, None, None).growth(OomCount(None, None, None)) is None


def test_the_counters_of_this_machine_are_read() -> None:
    counts = read_oom_count(own_memory_cgroup())
    assert counts.on_machine is not None
    assert counts.on_machine >= 0


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 48 MiB below our own, without swap; skips if it cannot be created."""
    parent = own_memory_cgroup()
    if parent is None:
        pytest.skip("no memory cgroup is mounted")
    folder = parent / f"launcher-test-{os.getpid()}"
    limit = "memory.max" if (parent / "memory.events").exists() else "memory.limit_in_bytes"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(48 << 20))
    except OSError as error:
        pytest.skip(f"a cgroup with a limit cannot be made here: {error}")
    yield folder
    deadline = time.monotonic() + 5
    while folder.exists() and time.monotonic() < deadline:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.01)


async def test_a_worker_killed_by_the_oom_killer_is_described_as_such(small_cgroup: Path) -> None:
    code = f"""
import os
open({str(small_cgroup / "cgroup.procs")!r}, 'w').write(str(os.getpid()))
hoard = [bytearray(os.urandom(1 << 20)) for _ in range(400)]
"""
    assert (await outcome(code)).startswith("killed by SIGKILL (probably out of memory: ")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_lines_are_the_same_however_the_stream_arrives(data: bytes, cuts: list[int]) -> None:
    def lines(pieces: list[bytes]) -> list[str]:
        splitter = LineSplitter()
        return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()

    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    cut = lines([data[a:b] for a, b in itertools.pairwise(edges)])
    assert [line for line in cut if line] == [line for line in lines([data]) if line]
