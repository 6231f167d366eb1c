"""The process that binds itself and executes a program: its binding, its signals, its exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.host.process.spawn_program import BINDER

CPUS = sorted(os.sched_getaffinity(0))
FACTS = """
import json, os, signal, sys
print(json.dumps({'pid': os.getpid(), 'cpus': sorted(os.sched_getaffinity(0)), 'words': sys.argv[1:],
    'pipe': signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL, 'path': sys.path[0]}))
"""


def become(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BINDER, *words], capture_output=True, text=True, check=False, timeout=100, **more)  # type: ignore[call-overload,no-any-return]


def test_the_process_is_bound_and_then_executes_the_program(tmp_path: Path) -> None:
    done = become("--cpus", str(CPUS[-1]), "--", sys.executable, "-c", FACTS, "a b", "--", "--cpus", "c")
    facts = json.loads(done.stdout)
    assert facts["cpus"] == CPUS[-1:]
    assert facts["words"] == ["a b", "--", "--cpus", "c"]
    assert done.stderr == ""


def test_the_pid_is_kept_and_sigpipe_terminates_the_program() -> None:
    with subprocess.Popen([*BINDER, "--", "cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        status = dict(line.split(":\t", 1) for line in running.stdout.read().splitlines())
    assert status["Name"] == "cat"
    assert int(status["Pid"]) == running.pid
    assert int(status["SigIgn"], 16) & (1 << signal.SIGPIPE - 1) == 0, "Python ignores it, but a program must not"
    assert int(status["SigBlk"], 16) == 0


def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    for name in ("signal", "ctypes", "launcher", "platform"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the wrong place')")
    done = become("--cpus", str(CPUS[0]), "--", "true", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--", "no-such-program-anywhere"), 127, "no-such-program-anywhere: No such file or directory"),
        (("--", "/etc/passwd"), 126, "/etc/passwd: Permission denied"),
        (("--cpus", "0"), 2, "no program after --"),
        (("--cpus", "4095", "--", "true"), 3, "cpus 4095 were refused"),
        (("--memory", "bind", "--nodes", "1000", "--", "true"), 3, "memory bind on node 1000 was refused"),
        (("--parent", "1", "--", "true"), 3, "the launcher has exited"),
    ],
)
def test_a_program_that_cannot_be_executed_gives_an_exit_status_and_a_message(
    words: tuple[str, ...], status: int, said: str
) -> None:
    done = become(*words)
    assert done.returncode == status
    assert done.stderr.startswith("launch run: ")
    assert said in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_not_a_program_is_reported_as_not_executable(tmp_path: Path) -> None:
    script = tmp_path / "data"
    script.write_text("no program\n")
    script.chmod(0o755)
    done = become("--", str(script))
    assert done.returncode == 126
    assert "Exec format error" in done.stderr


@pytest.mark.skipif(shutil.which("sleep") is None, reason="needs sleep")
def test_the_program_is_killed_with_its_parent() -> None:
    starter = f"""
import os, subprocess, sys
child = subprocess.Popen([*{BINDER!r}, '--parent', str(os.getpid()), '--', 'sleep', '60'])
print(child.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-I", "-S", "-c", starter]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}/comm").read_text() != "sleep\n" and time.monotonic() < deadline:
            time.sleep(0.005)
        parent.kill()
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
