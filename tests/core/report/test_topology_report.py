"""The report: the exact JSON document, and a text that is readable at any width, in a pipe and without colour."""

from __future__ import annotations

import functools
import io
import re
import shlex
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding, worker_command
from launcher.core.planning.length_classes import parse_classes
from launcher.core.planning.plan import Plan, PlanRequest, make_plan
from launcher.core.planning.worker_env import worker_env
from launcher.core.report.topology_report import (
    MAX_INSTANCES,
    Command,
    PlanReport,
    refused_json,
    refused_text,
    report_json,
    report_text,
)
from launcher.errors import MachineError
from launcher.host.machine.sysfs import read_machine
from tests.core.by_hand import GIB, machine, machines
from tests.machines import each_recorded, recorded

TWO_SOCKETS = machine(((24,), (24,)))
EPYC = machine(((8,) * 8, (8,) * 8))
LAPTOP = machine(((4, 8),), slow=range(4, 12))
TWO_CORES = machine(((2,),), threads=1)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def commands_of(plan: Plan, user: Mapping[str, str] | None = None) -> list[Command]:
    return [
        Command(worker_command(one, Binding("bind", "numactl", ""), "python3"), worker_env(one, user or {})[0])
        for one in plan.instances
    ]


def text_of(on: Machine, width: int = 80, request: PlanRequest | None = None, *, unicode: bool = True) -> Text:
    plan = make_plan(on, request or PlanRequest())
    report = PlanReport(on, plan, commands_of(plan), [*on.warnings, *plan.warnings])
    return report_text(report, width, unicode=unicode)


# -- JSON -------------------------------------------------------------------------------------------------------


def test_the_document_has_exactly_the_keys_of_schema_1() -> None:
    plan = make_plan(TWO_SOCKETS, PlanRequest(classes=parse_classes("32:8,max:24"), length_limit=512))
    document = report_json(PlanReport(TWO_SOCKETS, plan, commands_of(plan), ["Mind the gap."]))
    assert list(document) == ["schema", "machine", "plan", "warnings"]
    assert document["schema"] == 1
    assert document["warnings"] == ["Mind the gap."]
    assert list(document["machine"]) == [
        "arch",
        "vendor",
        "model",
        "microarchitecture",
        "isa",
        "cpus",
        "cores",
        "nodes",
        "limits",
    ]
    assert list(document["machine"]["cpus"]) == ["present", "online", "allowed", "isolated"]
    assert list(document["machine"]["cores"][0]) == ["id", "cpus", "package", "node", "l3", "kind"]
    assert list(document["machine"]["nodes"][0]) == ["id", "cpus", "memory_bytes", "distances"]
    assert list(document["machine"]["limits"]) == ["cpu_quota", "memory_nodes", "memory_bytes", "affinity"]
    assert list(document["plan"]) == ["instances", "reserved_cpus", "unused_cpus", "predicted"]
    first = document["plan"]["instances"][0]
    assert list(first) == ["id", "cpus", "threads", "nodes", "memory", "class", "command", "env", "why"]
    assert first["class"] == {"min_length": 1, "max_length": 32}
    assert first["command"][:2] == ["numactl", "-C"]
    assert first["env"]["OMP_NUM_THREADS"] == "8"


def test_the_class_of_an_instance_without_one_is_null() -> None:
    plan = make_plan(TWO_CORES, PlanRequest())
    document = report_json(PlanReport(TWO_CORES, plan, commands_of(plan), []))
    assert document["plan"]["instances"][0]["class"] is None


def test_the_plan_can_be_read_back_from_the_document() -> None:
    plan = make_plan(EPYC, PlanRequest())
    written = report_json(PlanReport(EPYC, plan, commands_of(plan), plan.warnings))
    document = msgspec.json.decode(msgspec.json.encode(written))
    assert Plan.from_json(document["plan"], EPYC, document["warnings"]) == plan


# -- text -------------------------------------------------------------------------------------------------------


def check_readable(text: str, width: int) -> None:
    assert not CONTROL.search(text)
    for line in text.split("\n"):
        assert line == line.rstrip(), f"spaces at the end of {line!r}"
        # A cpu list or a path is never wrapped: the printed command would differ from the one that is started.
        longest_word = max(map(len, line.split(" ")), default=0)
        assert len(line) <= width or longest_word > width - 24, f"{len(line)} columns: {line}"


@functools.cache
def read(name: str) -> Machine:
    return read_machine(recorded(name))


@each_recorded()
def test_every_recorded_machine_is_readable_at_any_width_and_of_limited_length(name: str) -> None:
    on = read(name)
    for width in (72, 80, 100, 200):
        text = text_of(on, width).plain
        check_readable(text, width)
    assert len(text_of(on, 100).plain.split("\n")) <= 140


@settings(deadline=None)
@given(machines(), st.integers(40, 160), st.integers(1, 30))
def test_any_plan_is_readable(on: Machine, width: int, count: int) -> None:
    try:
        text = text_of(on, width, PlanRequest(instances=count)).plain
    except MachineError:
        return
    check_readable(text, max(width, 72))


@pytest.mark.parametrize(
    ("on", "request_", "rows"),
    [
        (TWO_SOCKETS, PlanRequest(instances=4, reserve_cores=0), ["0" * 12 + "1" * 12, "2" * 12 + "3" * 12]),
        (TWO_CORES, PlanRequest(), ["01"]),
        (LAPTOP, PlanRequest(instances=3), ["0000", "r1112222"]),
        (TWO_CORES, PlanRequest(instances=3, oversubscribe=True), ["+1"]),
        (
            TWO_SOCKETS,
            PlanRequest(instances=1, cores_per_instance=20, reserve_cores=0),
            ["0" * 20 + "....", "." * 24],
        ),
        (EPYC, PlanRequest(), ["r0000000 r1111111", "EEEEEEEE FFFFFFFF"]),
    ],
)
def test_the_instance_of_each_core_is_visible_without_colour(
    on: Machine, request_: PlanRequest, rows: list[str]
) -> None:
    text = text_of(on, 100, request_).plain
    assert all(row in text for row in rows), text


def test_each_symbol_of_the_map_is_explained() -> None:
    text = text_of(TWO_SOCKETS, 100, PlanRequest(instances=3)).plain
    assert "r reserved for the front" in text
    assert ". unused" in text
    assert "+ shared" not in text
    assert "+ shared by several instances" in text_of(TWO_CORES, 100, PlanRequest(3, oversubscribe=True)).plain


def test_siblings_are_shown_where_there_are_any() -> None:
    assert "48-71" in text_of(TWO_SOCKETS).plain
    assert "siblings" in text_of(TWO_SOCKETS).plain
    assert "siblings" not in text_of(TWO_CORES).plain


def test_instances_have_colours_and_neighbours_have_different_ones() -> None:
    text = text_of(TWO_SOCKETS, 80, PlanRequest(instances=4, reserve_cores=0))
    at = text.plain.index("0" * 12)
    styles = [str(text.get_style_at_offset(Console(), at + position)) for position in (0, 12)]
    assert len(set(styles)) == 2
    assert "none" not in styles


@pytest.mark.parametrize("on", [TWO_SOCKETS, EPYC, LAPTOP, machine(((1,) * 288,), threads=1)])
def test_a_pipe_gets_the_same_text_without_control_codes(on: Machine) -> None:
    text = text_of(on, 100)
    outputs = []
    for terminal in (False, True):
        file = io.StringIO()
        console = Console(
            file=file,
            force_terminal=terminal,
            color_system="standard" if terminal else None,
            width=100,
            no_color=False,
        )
        console.print(text, soft_wrap=True)
        outputs.append(file.getvalue())
    assert "\x1b" not in outputs[0]
    assert "\x1b[" in outputs[1]
    assert re.sub(r"\x1b\[[0-9;]*m", "", outputs[1]) == outputs[0] == text.plain + "\n"


@pytest.mark.parametrize("on", [TWO_SOCKETS, EPYC, LAPTOP])
def test_a_terminal_without_unicode_gets_ascii(on: Machine) -> None:
    text_of(on, 80, PlanRequest(instances=1), unicode=False).plain.encode("ascii")
    assert "0, 1, ... the instance" in text_of(on, unicode=False).plain


def test_printed_commands_can_be_run_in_a_shell() -> None:
    plan = make_plan(TWO_SOCKETS, PlanRequest(instances=4))
    commands = [Command((*one.command, "--note", "two words"), one.env) for one in commands_of(plan)]
    text = report_text(PlanReport(TWO_SOCKETS, plan, commands, []), 80).plain.replace(" \\\n", " ")
    for one, command in zip(plan.instances, commands, strict=True):
        line = next(line for line in text.split("\n") if line.startswith(f"  {one.id}: "))
        words = shlex.split(line.removeprefix(f"  {one.id}: "))
        assert tuple(word for word in words if not re.match(r"[A-Z_]+=", word)) == command.command
    for name, value in commands[0].env.items():
        assert f"{name}={value}" in text


def test_many_equal_instances_are_listed_together() -> None:
    text = text_of(machine(((64,), (64,))), 100, PlanRequest(instances=128)).plain
    assert "0-63" in text
    assert "126 more of the same form" in text
    assert len(text.split("\n")) < 60
    assert MAX_INSTANCES < 128


def test_reasons_and_warnings_are_complete_and_warnings_come_last() -> None:
    plan = make_plan(TWO_SOCKETS, PlanRequest(instances=1))
    text = " ".join(text_of(TWO_SOCKETS, 80, PlanRequest(instances=1)).plain.split())
    assert all(one.why in text for one in plan.instances)
    assert all(text.index("Warnings") < text.index(warning) for warning in plan.warnings)
    assert "No warnings" in text_of(TWO_SOCKETS, 80, PlanRequest(instances=4)).plain


def test_the_table_shows_the_classes() -> None:
    request = PlanRequest(classes=parse_classes("32:8,max:24"), length_limit=512)
    text = text_of(TWO_SOCKETS, 80, request).plain
    assert "1-32" in text
    assert "33-512" in text


def test_the_report_shows_limits() -> None:
    from launcher.core.machine.topology import Limits

    limits = Limits(cpu_quota=5.5, memory_nodes=(1,), memory_bytes=3 << 30)
    text = text_of(machine(((24,), (24,)), limits=limits), 80).plain
    assert "cpu quota 5.5, memory nodes 1, memory 3.0 GiB" in text


def test_the_machine_is_shown_without_a_plan() -> None:
    on = machine(((2,), (2,)), memory_only=[GIB])
    text = refused_text(on, 80).plain
    assert "node 2 (memory only)" in text
    assert ".." in text
    assert "instance that uses" not in text
    document = refused_json(on, "the reason")
    assert (document["plan"], document["error"]) == (None, "the reason")
    assert document["machine"] == on.to_json()
