"""``launch doctor`` as a user runs it: with provoked problems, in a pipe, and on a tree without a machine."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.core.diagnosis import CHECKS
from tests.machines import build, regular

DENY = Path(__file__).parents[1] / "host" / "deny.py"
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")

# Runs its arguments while a program of low priority uses up the rest of the quota.
BESIDE_A_SPINNER = """
import subprocess, sys
with subprocess.Popen(["nice", "-n", "19", "sh", "-c", "while :; do :; done"]) as spinner:
    done = subprocess.run(sys.argv[1:])
    spinner.kill()
sys.exit(done.returncode)
"""


def doctor(
    *arguments: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "launcher", "doctor", *arguments]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    return {finding["id"]: finding for finding in document["findings"]}


def text_of(finding: dict[str, Any]) -> str:
    return json.dumps(finding, ensure_ascii=False)


def test_problems_of_the_calling_shell_are_found(tmp_path: Path) -> None:
    """A bad environment, low priority, few files and no numactl, all at once."""
    env = {"GOMP_CPU_AFFINITY": "0", "ATEN_CPU_CAPABILITY": "default", "PATH": str(tmp_path)}
    limits = (shutil.which("prlimit") or "", "--nofile=512:512", shutil.which("nice") or "", "-n", "5")
    found = findings(doctor("--json", before=limits, env=env))
    assert {found[name]["severity"] for name in ("thread-environment", "priority")} == {"problem"}
    assert {found[name]["severity"] for name in ("open-files", "numactl")} == {"advice"}
    assert found["thread-environment"]["fix"] == ["unset GOMP_CPU_AFFINITY"]
    assert "nice 5" in found["priority"]["title"]
    assert "512" in found["open-files"]["title"]
    assert found["memory-policy"]["severity"] == "fine"  # by system calls


@pytest.mark.skipif(platform.machine() not in SET_MEMPOLICY, reason="the number of set_mempolicy is not known here")
def test_a_refused_memory_policy_is_found_by_a_probe() -> None:
    denied = f"{SET_MEMPOLICY[platform.machine()]}:{errno.EPERM}"
    done = doctor("--json", before=(sys.executable, str(DENY), denied))
    if "no seccomp filter" in done.stderr:
        pytest.skip(done.stderr.strip())
    policy = findings(done)["memory-policy"]
    assert policy["severity"] == "problem"
    assert "not permitted" in text_of(policy)
    assert "SYS_NICE" in text_of(policy)


@pytest.fixture
def tenth_of_a_cpu() -> Iterator[Path]:
    """A control group (version 1) with a quota of a tenth of a cpu."""
    group = CPU_GROUPS / f"launcher-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("10000")
    except OSError as error:
        pytest.skip(f"no control group with a quota can be made here: {error}")
    yield group
    group.rmdir()


@pytest.mark.slow
def test_a_real_quota_is_found_with_its_file_and_its_throttling(tenth_of_a_cpu: Path) -> None:
    inside = (
        "sh",
        "-c",
        f'echo $$ > {tenth_of_a_cpu}/cgroup.procs; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        BESIDE_A_SPINNER,
    )
    found = findings(doctor("--json", before=inside))
    assert found["cpu-quota"]["severity"] == "problem"
    assert f"{tenth_of_a_cpu}/cpu.cfs_quota_us" in text_of(found["cpu-quota"])
    assert found["throttling"]["severity"] == "problem"
    assert "during the check" in text_of(found["throttling"])


def test_a_recorded_machine_is_diagnosed_in_a_pipe_without_colour(tmp_path: Path) -> None:
    root = build(tmp_path, regular(packages=2, files={"sys/devices/system/cpu/intel_pstate/no_turbo": "1"}))
    done = doctor("--sysroot", str(root), env={"TERM": "xterm-256color"})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.index("[boost]") < done.stdout.index("Unknown:")
    assert "echo 0 > /sys/devices/system/cpu/intel_pstate/no_turbo" in done.stdout


def test_a_tree_without_a_machine_is_a_usage_error(tmp_path: Path) -> None:
    empty = doctor("--sysroot", str(tmp_path))
    assert empty.returncode == 2
    assert "not the root of a machine" in empty.stderr
    barred = build(tmp_path / "barred", regular(files={"proc/self/status": "Cpus_allowed_list: 99"}))
    done = doctor("--sysroot", str(barred))
    assert done.returncode == 3
    assert "No cpu of this machine is usable" in done.stderr


def test_the_page_about_the_doctor_names_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    table = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert table == [check.id for check in CHECKS]
