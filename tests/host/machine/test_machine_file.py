"""Machine files: written and read back, accepted in every format, and otherwise refused with a reason."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from launcher.core.planning.plan import PlanRequest, make_plan
from launcher.core.report.topology_report import Command, PlanReport, report_json
from launcher.errors import UsageError
from launcher.host.machine.machine_file import (
    FORMATS,
    STANDARD_INPUT,
    lists_catalogue,
    read_machine_file,
    write_machine_file,
)
from launcher.host.machine.sysfs import read_machine
from tests.machines import build, each_recorded, recorded, regular

LSCPU = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n0,0,0,0,,0,0,0,0\n1,1,1,1,,1,1,1,1\n2,0,0,0,,0,0,0,0\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return build(tmp_path / "tree", regular(packages=2, cores=4))


def test_a_written_file_gives_the_same_machine(tree: Path, tmp_path: Path) -> None:
    machine = read_machine(tree)
    file = tmp_path / "machine.json"
    write_machine_file(file, machine)
    again = read_machine_file(file)
    assert again.to_json() == machine.to_json()
    assert (again.warnings, again.memory_bytes) == (machine.warnings, machine.memory_bytes)


@each_recorded()
def test_the_file_of_a_recorded_machine_gives_the_same_plan_as_the_machine(name: str, tmp_path: Path) -> None:
    machine = read_machine(recorded(name))
    write_machine_file(tmp_path / "machine.json", machine)
    assert make_plan(read_machine_file(tmp_path / "machine.json"), PlanRequest()) == make_plan(machine, PlanRequest())


def test_an_existing_file_is_replaced_and_a_link_is_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "long.json").write_text("x" * 1_000_000)
    (tmp_path / "link.json").symlink_to(tmp_path / "long.json")
    write_machine_file(tmp_path / "link.json", read_machine(tree))
    assert len(read_machine_file(tmp_path / "long.json").cores) == 8
    assert (tmp_path / "link.json").is_symlink()


@pytest.mark.parametrize("place", [".", "no/such/folder/machine.json", "-"])
def test_a_path_that_cannot_be_written_is_an_error(tree: Path, place: str) -> None:
    with pytest.raises(UsageError, match=f"--save {place}"):
        write_machine_file(Path(place), read_machine(tree))


def test_a_whole_report_is_accepted(tree: Path, tmp_path: Path) -> None:
    machine = read_machine(tree)
    plan = make_plan(machine, PlanRequest(instances=2))
    commands = [Command(("program",), {})] * 2
    report = report_json(PlanReport(machine, plan, commands, ["of the plan"]))
    (tmp_path / "report.json").write_text(json.dumps(report))
    again = read_machine_file(tmp_path / "report.json")
    assert again.cores == machine.cores
    assert len(again.warnings) == 1
    assert "also concern its plan" in again.warnings[0]


@pytest.mark.parametrize("text", [LSCPU, "\ufeff" + LSCPU, LSCPU.replace("\n", "\r\n"), f"\n{LSCPU}\n\n"])
def test_output_of_lscpu_is_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "lscpu.txt").write_bytes(text.encode())
    machine = read_machine_file(tmp_path / "lscpu.txt")
    assert [(core.cpus, core.package, core.node) for core in machine.cores] == [((0, 2), 0, 0), ((1,), 1, 1)]
    assert (machine.arch, machine.model, machine.isa) == ("unknown", None, ())


def test_standard_input_is_read_for_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LSCPU.encode())))
    assert len(read_machine_file(STANDARD_INPUT).cores) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b" \n\t\n", "it is empty"),
        (b"\x7fELF\x02\x01\x01\x00", "NUL bytes"),
        (b"# CPU\n\xff\xfe", "byte 6 is not valid UTF-8"),
        (b"{", "starts like JSON but is not valid JSON"),
        (b"[" * 100_000, "starts like JSON but is not valid JSON"),
        (b"[]", "not a machine"),
        (b'{"lscpu": [{"field": "CPU(s):", "data": "2"}]}', r"no line 'Thread\(s\) per core'; use .*`lscpu -p`"),
        (b'{"lscpu": [1]}', "is not a list of fields"),
        (b'{"cpus": [1]}', "is not a list of objects"),
        (b'{"schema": 2, "machine": {}}', "schema 2; this version reads schema 1"),
        (b'{"schema": "two", "machine": {}}', "schema 'two'"),
        (b'{"machine": {"arch": "x86_64"}}', r"missing required field .*\$\.machine"),
        (b"Architecture:  x86_64\nCPU(s):  2\n", r"no line 'Thread\(s\) per core'; use .*`lscpu -p`"),
        (b"Architektur:  x86_64\nCPU(s):  2\nThread(s) pro Kern: 1\n", r"no line 'Thread\(s\) per core'"),
        (b"CPU NODE SOCKET CORE\n  0    0      0    0 7 7\n", "has 6 cells and `lscpu -e` has 4 columns"),
        (b"# CPU,Core,Socket,Node\n0,0,0,0\n1,1,0\n", "it has 3 cells; the text may be incomplete"),
        (b"hello there\n", "'hello there' is not a row"),
        (b"# CPU,Core,Socket,Node\n", "no cpu"),
        (b"# CPU,Core\n0,0\n0,1\n", "cpus 0 have several rows"),
        (b"# CPU,Core\n99999999,0\n", "largest supported"),
        (b"# CPU,Core,Socket,Node\n0,0,0,99999999\n", "largest supported"),
    ],
)
def test_a_file_without_a_machine_is_refused_with_the_reason_and_the_accepted_formats(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "machine.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_machine_file(file)
    assert str(file) in str(caught.value)
    assert FORMATS in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_machine_file(tmp_path / "missing.json")
    with pytest.raises(UsageError, match=r"directory; for a directory .* use --sysroot"):
        read_machine_file(tmp_path)


def test_an_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.host.machine.machine_file.MAX_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        read_machine_file(Path("/dev/zero"))


def test_a_known_machine_is_found_by_its_name_in_any_case() -> None:
    machine = read_machine_file(Path("C5.Metal"))
    assert (machine.model, len(machine.cores)) == ("Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz", 48)


def test_a_file_takes_precedence_over_a_known_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c5.metal").write_text(LSCPU)
    assert len(read_machine_file(Path("c5.metal")).cores) == 2
    assert len(read_machine_file(Path("c6g.metal")).cores) == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c5.meta1", "--machine c5.meta1: No such file .* similar names: c5.metal.*--machine list"),
        ("epyc-9654-nps4", "similar names: epyc-9654-2s-nps4"),
        ("nothing like it", "no known machine has this name; .*--machine list"),
        ("list", "lists the known machines"),
    ],
)
def test_an_unknown_name_is_refused_with_similar_names(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_machine_file(Path(name))


def test_a_path_is_never_the_name_of_a_known_machine() -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_machine_file(Path("./nowhere/c5.metal"))


def test_list_asks_for_the_catalogue_unless_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lists_catalogue(Path("list"))
    assert not lists_catalogue(None)
    assert not lists_catalogue(Path("c5.metal"))
    Path("list").write_text(LSCPU)
    assert not lists_catalogue(Path("list"))
    assert len(read_machine_file(Path("list")).cores) == 2
