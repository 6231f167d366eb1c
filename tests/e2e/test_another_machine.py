"""Plans for another machine, from the command line: saved, used elsewhere, and never started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.machines import build, recorded, regular

pytestmark = pytest.mark.slow


def launch(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *arguments]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", **(env or {})}
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=100, check=False, env=environment
    )


def report(*arguments: str, **more: Any) -> dict[str, Any]:
    done = launch("topology", "--json", *arguments, **more)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def tree(tmp_path: Path) -> str:
    return str(build(tmp_path / "tree", regular(packages=2, cores=24)))


def test_the_plan_for_a_saved_machine_is_the_one_made_on_it(tmp_path: Path) -> None:
    there = ("--sysroot", str(recorded("dv-2xEPYC-7763")), "--instances", "4")
    file = tmp_path / "machine.json"
    saved = launch("topology", "--json", *there, "--save", str(file))
    assert saved.returncode == 0
    assert saved.stderr == f"launch: wrote the machine (128 usable cores) to {file}\n"
    assert report("--machine", str(file), "--instances", "4") == json.loads(saved.stdout)


def test_this_machine_can_be_saved_and_its_file_counts_as_another_machine(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    here = report("--instances", "1", "--save", str(file))
    there = report("--instances", "1", "--machine", str(file))
    assert there["machine"] == here["machine"]
    assert [one["cpus"] for one in there["plan"]["instances"]] == [one["cpus"] for one in here["plan"]["instances"]]
    assert sys.executable not in json.dumps(there)


def test_the_machine_is_saved_even_if_the_plan_does_not_fit(tree: str, tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    done = launch("topology", "--sysroot", tree, "--instances", "100", "--save", str(file))
    assert done.returncode == 3
    assert len(json.loads(file.read_text())["machine"]["cores"]) == 48


def test_the_plan_for_another_machine_contains_no_fact_of_this_one(tree: str, tmp_path: Path) -> None:
    file = str(tmp_path / "machine.json")
    launch("topology", "--sysroot", tree, "--save", file)
    plain = report("--machine", file)
    assert plain["plan"]["instances"][-1]["command"][:6] == ["numactl", "-C", "36-47", "-m", "1", "python3"]
    # Neither the environment here, nor a missing numactl, nor the affinity mask of this process.
    python = f"{sys.executable} -m launcher topology --json --machine {file}"
    command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *python.split()]
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "7", "KMP_AFFINITY": "compact"}
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "numactl").write_text("#!/bin/sh\necho refused >&2; exit 1\n")
    (bare / "numactl").chmod(0o755)
    environment["PATH"] = f"{bare}:{environment['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == plain


def test_output_of_lscpu_is_read_from_a_pipe() -> None:
    rows = "\n".join(f"{cpu},{cpu % 8},{cpu % 8 // 4},{cpu % 8 // 4}" for cpu in range(16))
    document = report("--machine", "-", "--instances", "2", stdin=f"# CPU,Core,Socket,Node\n{rows}\n")
    assert [one["cpus"] for one in document["plan"]["instances"]] == [[1, 2, 3], [4, 5, 6, 7]]
    assert document["machine"]["arch"] is None


def test_known_machines_are_listed_and_planned_by_name() -> None:
    document = report("--machine", "c5.metal", "--instances", "4")
    assert [(len(one["cpus"]), one["nodes"]) for one in document["plan"]["instances"]] == [
        (11, [0]),
        (12, [0]),
        (12, [1]),
        (12, [1]),
    ]
    assert document["machine"]["microarchitecture"] == "cascadelake"
    assert any("c5.metal is an entry of the built-in catalogue" in warning for warning in document["warnings"])
    listed = launch("topology", "--machine", "list")
    assert listed.returncode == 0
    assert listed.stdout.startswith("c5.metal ")
    run = launch("run", "--dry-run", "--machine", "c6g.metal", "--instances", "2", "--", "sleep", "1")
    assert "numactl -C 0-31 -m 0" in run.stdout, run.stderr


def test_the_dry_run_shows_the_plan_for_the_file_too(tree: str, tmp_path: Path) -> None:
    file = str(tmp_path / "machine.json")
    launch("topology", "--sysroot", tree, "--save", file)
    dry = launch("--dry-run", "--machine", file, "--instances", "3")
    assert dry.returncode == 0
    assert dry.stdout == launch("topology", "--machine", file, "--instances", "3").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--machine", "m.json"), ["--machine m.json", "another machine", "--dry-run", "launch topology"]),
        (("--sysroot", "m"), ["--sysroot m", "another machine", "--dry-run", "launch topology"]),
        (("--dry-run", "--machine", "m.json", "--sysroot", "m"), ["--machine m.json", "--sysroot m", "one of them"]),
        (("topology", "--machine", "no/such.json"), ["no/such.json", "No such file", "--save", "lscpu -p"]),
        (("topology", "--machine", "c5.meta1"), ["c5.meta1", "similar names: c5.metal", "--machine list"]),
        (
            ("run", "--dry-run", "--machine", "list", "--", "true"),
            ["names no machine", "launch topology --machine list"],
        ),
        (("topology", "--machine", "-"), ["--machine -", "it is empty", "--save", "lscpu -p"]),
        (("topology", "--save", "no/such/m.json"), ["--save no/such/m.json", "No such file"]),
        (("--dry-run", "--save", "m.json"), ["--save"]),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_started(arguments: tuple[str, ...], words: list[str]) -> None:
    done = launch(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "started as pid" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
