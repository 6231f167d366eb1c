"""lscpu for comparison and as the only source: real output, and programs that fail in every way."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from launcher.core.machine.topology import Machine, machine_from_json, machine_to_json
from launcher.errors import UsageError
from launcher.host.machine import lscpu
from launcher.host.machine.lscpu_machine import machine_from_lscpu
from launcher.host.machine.lscpu_rows import Row, parse_rows
from launcher.host.machine.sysfs import read_machine
from tests.machines import build, each_recorded, recorded, regular, truth

needs_lscpu = pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu is not installed")

PLAIN = """\
# The following is the parsable format, which can be fed to other
# programs. Each different item in every column has an unique ID
# starting usually from zero.
# CPU,Core,Socket,Node,,L1d,L1i,L2,L3
0,0,0,0,,0,0,0,0
1,1,0,0,,1,1,1,0
2,2,1,1,,2,2,2,1
3,3,1,1,,3,3,3,1
4,0,0,0,,0,0,0,0
5,1,0,0,,1,1,1,0
6,2,1,1,,2,2,2,1
7,3,1,1,,3,3,3,1
"""


def _fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named lscpu first in PATH."""
    program = folder / "bin" / "lscpu"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def _read(folder: Path) -> Machine:
    return read_machine(build(folder / "root", regular(packages=2, cores=2, threads=2)))


def test_a_plain_file_gives_cores_packages_nodes_and_caches() -> None:
    machine = machine_from_lscpu(PLAIN)
    assert [(core.cpus, core.package, core.node, core.l3) for core in machine.cores] == [
        ((0, 4), 0, 0, 0),
        ((1, 5), 0, 0, 0),
        ((2, 6), 1, 1, 1),
        ((3, 7), 1, 1, 1),
    ]
    assert [(node.id, node.cpus, node.memory_bytes) for node in machine.nodes] == [
        (0, (0, 1, 4, 5), None),
        (1, (2, 3, 6, 7), None),
    ]
    assert machine.warnings == ()
    assert machine.limits.affinity is None


def test_the_machine_of_a_file_survives_json() -> None:
    machine = machine_from_lscpu(PLAIN)
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine)))) == machine


def test_offline_cpus_are_present_and_not_used() -> None:
    machine = machine_from_lscpu("# CPU,Core,Socket,Node,Online\n0,0,0,0,Y\n1,,,0,N\n2,1,0,0,Y\n")
    assert machine.present == (0, 1, 2)
    assert machine.online == (0, 2)
    assert [core.cpus for core in machine.cores] == [(0,), (2,)]


def test_columns_in_any_order_and_caches_in_one_column_are_parsed() -> None:
    text = "# Socket,CPU,L1d:L1i:L2:L3\n0,0,0:0:0:0\n0,1,0:0:0:0\n0,2,1:1:1:0\n1,3,2:2:2:1\n"
    machine = machine_from_lscpu(text)
    assert [(core.cpus, core.package, core.l3) for core in machine.cores] == [
        ((0, 1), 0, 0),
        ((2,), 0, 0),
        ((3,), 1, 1),
    ]
    assert machine.nodes == ()


def test_cores_with_equal_numbers_in_a_package_are_distinguished_by_their_caches() -> None:
    text = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n0,0,0,0,,0,0,0,0\n1,0,0,0,,1,1,1,0\n"
    assert [core.cpus for core in machine_from_lscpu(text).cores] == [(0,), (1,)]


def test_cores_identified_by_number_alone_are_reported_as_uncertain() -> None:
    machine = machine_from_lscpu("# CPU,Core,Socket\n0,0,0\n1,0,0\n2,1,0\n")
    assert [core.cpus for core in machine.cores] == [(0, 1), (2,)]
    assert any("CORE alone" in warning and "cpus 0-1" in warning for warning in machine.warnings)


@pytest.mark.parametrize("text", ["", "# CPU,Core\n", "\n\n", "# CPU,Core,Socket,Node\n,,,\n"])
def test_a_file_without_cpus_is_refused_with_the_command_that_makes_one(text: str) -> None:
    with pytest.raises(UsageError, match="lscpu -p > FILE"):
        machine_from_lscpu(text)


@pytest.mark.parametrize("text", ['{"cpus": []}', "Memory: 8", "# CPU,Core\n0,one", "0,-1", "# CPU,Core\n99999999,0"])
def test_a_file_in_another_format_is_refused_with_the_line(text: str) -> None:
    with pytest.raises(UsageError, match="is not a row of `lscpu -p`"):
        machine_from_lscpu(text)


def test_the_default_columns_are_assumed_if_no_comment_names_them() -> None:
    assert parse_rows("0,0,0,\n1,1,0,0") == [Row(0, 0, 0, None), Row(1, 1, 0, 0)]


@needs_lscpu
@each_recorded()
def test_the_output_for_a_recorded_machine_gives_its_true_cores(name: str) -> None:
    known = truth(name)
    command = ["lscpu", "-s", str(recorded(name)), "-p"]
    result = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=100, check=False)
    rows = {row.cpu: row for row in parse_rows(result.stdout)}
    if not rows:
        pytest.skip("lscpu prints nothing for this machine")
    for core in known["kernel_cores"]:
        if len({rows[cpu].cache("l2") for cpu in core}) > 1:
            pytest.skip("lscpu prints different level-2 caches for siblings")
    machine = machine_from_lscpu(result.stdout)
    if all(row.cache("l2") is not None for row in rows.values()):
        assert [list(core.cpus) for core in machine.cores] == sorted(known["kernel_cores"])
    else:
        merged = {cpu: core.cpus for core in machine.cores for cpu in core.cpus}
        assert all(set(core) <= set(merged[core[0]]) for core in known["kernel_cores"])
        wrong = [core for core in known["kernel_cores"] if set(core) != set(merged[core[0]])]
        assert all(any("CORE alone" in warning for warning in machine.warnings) for _ in wrong)


@needs_lscpu
@pytest.mark.parametrize(
    ("name", "words"),
    [("pc-galaxy-s9-global", "packages that differ between lscpu and"), ("hw-16ia64-8n2s", "0 of cpus 0-1")],
)
def test_a_real_disagreement_is_named_with_its_cpus(name: str, words: str) -> None:
    assert any("lscpu" in warning and words in warning for warning in read_machine(recorded(name)).warnings)


@needs_lscpu
@each_recorded()
def test_repeated_core_numbers_are_not_a_disagreement(name: str) -> None:
    known = truth(name)
    warnings = [
        one for one in read_machine(recorded(name)).warnings if "lscpu" in one and "core" in one.split("lscpu")[1]
    ]
    assert warnings == [], (known["core_id_repeats_across_packages"], known["core_id_repeats_inside_package"])


def test_each_kind_of_disagreement_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["0,0,0,0,Y", "1,1,0,0,Y", "2,2,0,1,Y", "3,3,1,0,Y", "4,4,0,0,Y", "5,1,0,0,Y", "6,2,1,1,Y", "7,3,1,1,N"]
    _fake(tmp_path, monkeypatch, "\n".join(f"echo {row}" for row in rows))
    text = "\n".join(_read(tmp_path).warnings)
    assert "only one of lscpu and cpu/online: cpus 7" in text
    assert "siblings (topology/core_cpus) that lscpu reports as separate cores: cpus 0,4" in text
    assert "packages that differ between lscpu and topology/physical_package_id: 0 of cpus 0-1,4-5" in text
    assert "nodes that differ between lscpu and node*/cpumap: 0 of cpus 0-1,4-5" in text


def test_an_lscpu_that_agrees_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{cpu},{cpu % 4},{cpu % 4 // 2},{cpu % 4 // 2},Y" for cpu in range(8)]
    _fake(tmp_path, monkeypatch, "\n".join(f"echo {row}" for row in rows))
    assert _read(tmp_path).warnings == ()


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "kill -SEGV $$",
        "exit 0",
        "echo ,,,,; echo ,,,,",
        "echo 'Ungültige Spalte'; exit 1",
        "echo 'Prozessor,Kern'",
        "printf '\\377\\376,0,0,0,Y\\n'",
        "echo 0,,,,; echo 1,,,,; echo 2,,,,; echo 3,,,,",
        "echo 0,0,0,0,J; echo 1,1,0,0,J",
        "echo 0,0",
    ],
    ids=[
        "fails",
        "crashes",
        "silent",
        "blank",
        "localized",
        "other words",
        "binary",
        "cpus only",
        "localized yes",
        "short",
    ],
)
def test_an_lscpu_that_fails_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    _fake(tmp_path, monkeypatch, script)
    machine = _read(tmp_path)
    assert len(machine.cores) == 4
    assert machine.warnings == ()


def test_a_missing_lscpu_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (len(_read(tmp_path).cores), _read(tmp_path).warnings) == (4, ())


def test_an_lscpu_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lscpu, "TIMEOUT", 0.1)
    _fake(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    start = time.monotonic()
    assert len(_read(tmp_path).cores) == 4
    assert time.monotonic() - start < 300
    pid_file = tmp_path / "pid"
    if pid_file.exists():  # otherwise killed before it could print anything
        assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
