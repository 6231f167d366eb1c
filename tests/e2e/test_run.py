"""``launch run`` end to end: real copies of real programs, their output, their exits, no process left over."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two cpus")
PY = (sys.executable, "-I", "-S", "-c")
SECONDS = 200.0


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher", "run", *words]


def launch_run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": SECONDS, "stdin": subprocess.DEVNULL, **more}
    return subprocess.run(command(*words), check=False, **options)  # type: ignore[call-overload,no-any-return]


def two(*words: str) -> tuple[str, ...]:
    """Two instances, even on a machine with one core."""
    return ("--instances", "2", *(("--oversubscribe",) if len(CPUS) < 2 else ()), *words)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def started(*words: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        **more,
    }
    process: subprocess.Popen[str] = subprocess.Popen(command(*words), **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate()


def read_numbers(process: subprocess.Popen[str], count: int) -> list[int]:
    """The numbers on the next ``count`` lines of standard output."""
    assert process.stdout is not None
    return [int(re.sub(r"^\[\d+\] ", "", process.stdout.readline())) for _ in range(count)]


# -- where and with what ------------------------------------------------------------------------------------------


@two_cpus
def test_each_copy_has_its_own_cores_and_variables() -> None:
    code = """
import json, os
own = {name: value for name, value in os.environ.items() if name.startswith(('LAUNCH_', 'OMP_', 'OPENBLAS_'))}
words = '{instance}/{instances} {cpus} {{cpus}}'
print(json.dumps({'cpus': sorted(os.sched_getaffinity(0)), 'env': own, 'words': words}))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = launch_run("--instances", "2", "--cores-per-instance", "1", "--", *PY, code, env=env)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    facts = {name: json.loads(text) for name, text in said.items()}
    assert set(facts) == {"[0]", "[1]"}
    assert facts["[0]"]["cpus"] != facts["[1]"]["cpus"]
    for number, name in enumerate(("[0]", "[1]")):
        (cpu,) = facts[name]["cpus"]
        env_of = facts[name]["env"]
        assert (env_of["LAUNCH_RUN_INSTANCE"], env_of["LAUNCH_RUN_INSTANCES"]) == (str(number), "2")
        assert (env_of["LAUNCH_RUN_CPUS"], env_of["LAUNCH_RUN_THREADS"]) == (str(cpu), "1")
        assert (env_of["OMP_NUM_THREADS"], env_of["OPENBLAS_NUM_THREADS"]) == ("1", "1")
        assert facts[name]["words"] == f"{number}/2 {cpu} {{cpus}}"


def test_options_of_the_environment_are_for_this_command_and_not_for_its_programs(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("grace-seconds = 1\n")
    code = "import os; print({n: v for n, v in os.environ.items() if n.startswith('LAUNCH_')})"
    env = {**os.environ, "LAUNCH_INSTANCES": "1", "LAUNCH_CONFIG": str(file), "LAUNCH_PORT": "9000"}
    done = launch_run("--", *PY, code, env=env)
    assert done.returncode == 0, done.stderr
    seen = ast.literal_eval(done.stdout)
    assert seen.pop("LAUNCH_PORT") == "9000"
    assert seen.pop("LAUNCH_REGISTRY") == "off", "a launcher among the programs uses the same registry"
    names = ("CPUS", "ID", "INSTANCE", "INSTANCES", "NODES", "THREADS")
    assert sorted(seen) == [f"LAUNCH_RUN_{name}" for name in names]


def test_a_launch_among_the_programs_plans_for_its_own_cores_without_warnings() -> None:
    inner = [sys.executable, "-m", "launcher", "topology", "--json"]
    done = launch_run("--instances", "1", "--", *inner, env={**os.environ, "LAUNCH_CORES_PER_INSTANCE": "1"})
    assert done.returncode == 0, done.stderr
    assert "is not an option" not in done.stderr
    plan = json.loads(done.stdout)["plan"]["instances"]
    assert sum(len(instance["cpus"]) for instance in plan) == 1


def test_the_user_s_number_of_threads_is_kept_and_reported() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = launch_run("--instances", "1", "--", "sh", "-c", "echo $OMP_NUM_THREADS", env=env)
    assert done.stdout == "7\n"
    assert "OMP_NUM_THREADS=7 in your environment is kept" in done.stderr


def test_without_numactl_the_program_is_still_bound(tmp_path: Path) -> None:
    for name in ("sh", "cat"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    done = launch_run("--instances", "1", "--cores-per-instance", "1", "--", "cat", "/proc/self/status",
                      env={**os.environ, "PATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "numactl is not installed" in done.stderr
    (mask,) = re.findall(r"Cpus_allowed_list:\t(.*)", done.stdout)
    assert mask.isdigit()


def test_the_dry_run_shows_the_commands_and_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "touched"
    done = launch_run("--dry-run", "--instances", "1", "--json", "--", "touch", str(file))
    report = json.loads(done.stdout)
    (instance,) = report["plan"]["instances"]
    assert instance["command"][-2:] == ["touch", str(file)]
    assert instance["env"]["LAUNCH_RUN_INSTANCE"] == "0"
    assert report["plan"]["reserved_cpus"] == []
    assert not file.exists()


# -- output and input ---------------------------------------------------------------------------------------------


def test_both_outputs_are_relayed_separately_and_byte_for_byte(tmp_path: Path) -> None:
    code = "import os; os.write(1, b'caf\\xe9\\n'); os.write(2, b'\\xff!\\n')"
    done = launch_run(*two("--log-dir", str(tmp_path / "logs"), "--", *PY, code), text=False)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [b"[0] caf\xe9", b"[1] caf\xe9"]
    assert {b"[0] \xff!", b"[1] \xff!"} <= set(done.stderr.splitlines())
    for number in range(2):
        kept = (tmp_path / "logs" / f"instance-{number}.log").read_bytes()
        assert sorted(kept.splitlines()) == [b"caf\xe9", b"\xff!"]


def test_quiet_hides_the_output_and_requires_a_log_folder(tmp_path: Path) -> None:
    done = launch_run(*two("--quiet", "--log-dir", str(tmp_path), "--", "echo", "hello"))
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "instance-1.log").read_text() == "hello\n"
    refused = launch_run("--quiet", "--", "echo", "hello")
    assert refused.returncode == 2
    assert "--log-dir" in refused.stderr


def test_everything_written_before_the_exit_is_shown() -> None:
    done = launch_run(*two("--", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; printf end"))
    assert done.returncode == 0
    for number in range(2):
        lines = [line[4:] for line in done.stdout.splitlines() if line.startswith(f"[{number}]")]
        assert lines == [*map(str, range(20000)), "end"]


def test_a_single_program_inherits_input_and_output() -> None:
    done = subprocess.run(
        command("--instances", "1", "--", "cat"), input=b"a\xffb", capture_output=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"a\xffb")


def test_several_programs_have_no_input() -> None:
    done = launch_run(*two("--", "cat"), stdin=None, input="for nobody\n")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_closed_output_stops_the_run() -> None:
    with started(*two("--grace-seconds", "5", "--", "sh", "-c", "while :; do echo y; done")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(SECONDS) != 0


# -- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "status"), [(("exit 7",), 7), (("kill -SEGV $$",), 139), (("kill -TERM $$",), 143)])
def test_the_exit_status_is_that_of_the_program(words: tuple[str, ...], status: int) -> None:
    assert launch_run("--instances", "1", "--", "sh", "-c", *words).returncode == status


def test_a_failure_stops_the_others_and_gives_the_exit_status() -> None:
    done = launch_run(*two("--", "sh", "-c", "if [ {instance} = 1 ]; then exit 5; else exec sleep 60; fi"))
    assert done.returncode == 5
    assert "instance 1   failed: exit status 5" in _words(done.stderr)
    assert "instance 0   stopped: killed by SIGTERM (exit code 143)" in _words(done.stderr)


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    code = "trap '' TERM; if [ {instance} = 1 ]; then sleep 0.5; exit 5; fi; while :; do sleep 0.05; done"
    done = launch_run(*two("--grace-seconds", "0.3", "--", "sh", "-c", code))
    assert done.returncode == 5
    assert "instance 0   stopped: killed by SIGKILL" in _words(done.stderr)


def test_with_continue_the_others_finish(tmp_path: Path) -> None:
    code = "if [ {instance} = 0 ]; then exit 4; fi; sleep 0.5; echo finished"
    done = launch_run(*two("--on-failure", "continue", "--", "sh", "-c", code))
    assert done.returncode == 4
    assert done.stdout == "[1] finished\n"


@pytest.mark.slow
def test_with_restart_a_failed_program_is_restarted_up_to_the_limit(tmp_path: Path) -> None:
    code = f"echo try >> {tmp_path}/tries-{{instance}}; [ $(wc -l < {tmp_path}/tries-{{instance}}) -gt {{instance}} ]"
    done = launch_run(*two("--on-failure", "restart", "--", "sh", "-c", code))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tries-1").read_text() == "try\n" * 2
    assert "restarts on the same cores in 0.5 s (consecutive failure 1 of 5)" in done.stderr
    given_up = launch_run(
        "--instances", "1", "--on-failure", "restart", "--max-failures", "2", "--", "sh", "-c", "exit 6"
    )
    assert given_up.returncode == 6
    assert "failed: exit status 6, 2 starts" in given_up.stderr


def test_a_missing_program_is_reported_before_anything_starts() -> None:
    done = launch_run(*two("--", "no-such-program-{instance}"))
    assert done.returncode == 2
    assert "no-such-program-0" in done.stderr
    assert "started" not in done.stderr.replace("was started", "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--instances", "5000", "--", "true"), 3, "--oversubscribe"),
        (("--cores-per-instance", "5000", "--", "true"), 3, "5000"),
        (("--sysroot", "tests", "--", "true"), 2, "--dry-run"),
        (("--json", "--", "true"), 2, "--dry-run"),
        (("--on-failure", "panic", "--", "true"), 2, "restart"),
        (("--allocator", "tcmalloc", "--openmp", "gnu", "--", "true"), 2, "/x/libjemalloc.so.2"),
        (("--instances", "2"), 2, "PROGRAM"),
    ],
)
def test_invalid_options_are_refused(words: tuple[str, ...], status: int, said: str) -> None:
    done = launch_run(*words, env={**os.environ, "LD_PRELOAD": "/x/libjemalloc.so.2"})
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# -- signals ------------------------------------------------------------------------------------------------------

WAITS = "import signal, sys, time; signal.signal({}, lambda *_: sys.exit({})); print(0, flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_forwarded_and_a_clean_exit_gives_status_0(number: signal.Signals) -> None:
    with started(*two("--", *PY, WAITS.format(int(number), 0))) as process:
        read_numbers(process, 2)
        process.send_signal(number)
        assert process.wait(SECONDS) == 0


def test_programs_killed_by_the_signal_give_its_exit_code() -> None:
    with started(*two("--", *PY, WAITS.format(int(signal.SIGUSR1), 9))) as process:
        read_numbers(process, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143


def test_user_signals_are_forwarded() -> None:
    with started(*two("--on-failure", "continue", "--", *PY, WAITS.format(int(signal.SIGUSR1), 9))) as process:
        read_numbers(process, 2)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(SECONDS) == 9


def test_a_second_signal_kills() -> None:
    code = "import os, signal, time; signal.signal(2, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    with started(*two("--", *PY, code)) as process:
        pids = read_numbers(process, 2)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("a second signal kills" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 137
    assert all(map(gone, pids))


def test_a_reader_that_does_not_read_does_not_delay_the_exit() -> None:
    with started(*two("--", "yes")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert any("a second signal kills" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) in (130, 137)


def test_without_a_reader_the_run_ends_within_the_grace_period() -> None:
    with started(*two("--grace-seconds", "0.5", "--", "yes")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143


# -- nothing is left over -----------------------------------------------------------------------------------------

# A program that starts a child in its session, and a daemon that leaves session, parent and environment.
FAMILY = """
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
        os.execve(sys.executable, [sys.executable, '-I', '-S', '-c', code], {})
    print(os.getpid(), flush=True)
    time.sleep(60)
print(os.getpid(), flush=True)
{end}
"""


def family(process: subprocess.Popen[str]) -> list[int]:
    pids = read_numbers(process, 3)
    assert not any(map(gone, pids))
    return pids


@pytest.mark.parametrize("victim", ["the launcher", "its other half"])
def test_no_process_is_left_when_the_launcher_is_killed(victim: str) -> None:
    with started("--instances", "1", "--", *PY, FAMILY.replace("{end}", "time.sleep(60)")) as process:
        pids = family(process)
        (half,) = psutil.Process(process.pid).children()
        (process if victim == "the launcher" else half).kill()
        assert until(lambda: all(map(gone, [*pids, half.pid])))
        assert process.wait(SECONDS) == (-9 if victim == "the launcher" else 137)


def test_descendants_of_a_program_are_killed_with_the_run() -> None:
    with started("--instances", "1", "--", *PY, FAMILY.replace("{end}", "time.sleep(0.3)")) as process:
        pids = read_numbers(process, 3)
        assert process.wait(SECONDS) == 0
        assert all(map(gone, pids))


def test_descendants_of_a_failed_program_are_killed_before_its_restart(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, sys, time
first = not pathlib.Path({str(tmp_path / "second")!r}).exists()
pathlib.Path({str(tmp_path / "second")!r}).touch()
if first:
    if os.fork() == 0:
        os.setsid()
        print(os.getpid(), flush=True)
        time.sleep(60)
    time.sleep(0.3)
    sys.exit(1)
time.sleep(60)
"""
    with started("--instances", "1", "--on-failure", "restart", "--", *PY, code) as process:
        (left,) = read_numbers(process, 1)
        assert until(lambda: gone(left))
        assert process.poll() is None


# -- verification -------------------------------------------------------------------------------------------------


def _words(text: str) -> str:
    return "\n".join(re.sub(r"^\S+  ", "", line).replace("error: ", "") for line in text.splitlines())


@two_cpus
@pytest.mark.slow
def test_a_program_that_moves_its_threads_is_reported_and_with_strict_killed() -> None:
    code = "import os, time; os.sched_setaffinity(0, range(4096)); print(0, flush=True); time.sleep({seconds})"
    words = ("--instances", "1", "--cores-per-instance", "1")
    named = launch_run(*words, "--", *PY, code.format(seconds=3))
    assert named.returncode == 0
    assert "1 of 1 threads may run outside the planned cpus" in named.stderr
    ended = launch_run(*words, "--strict", "--", *PY, code.format(seconds=30))
    assert ended.returncode == 3
    assert "failed: --strict: pid" in ended.stderr


@pytest.mark.slow
def test_a_program_is_verified_with_its_descendants() -> None:
    done = launch_run("--instances", "1", "--", "sh", "-c", "sleep 3 & wait")
    assert done.returncode == 0
    assert re.search(r"verified: all 1 threads on cpus \S+.*\(and 1 descendants\)", done.stderr)
