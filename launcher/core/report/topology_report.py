"""The topology report: machine and plan as text, and as the JSON document of schema 1.

Each section of the text is one function; the columns of the table of instances are in ``_instance_cells``. Separate so
that ``launch topology`` and ``--dry-run`` print the same. Nothing is printed or decided here.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.memory_check import gib
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.core.report.ascii_map import RESERVED, UNUSED, Mark, draw_cores, legend, mark_of
from launcher.core.report.forecast import Forecast, forecast_lines
from launcher.core.report.text_format import shorten, table, without_controls, wrap

SCHEMA = 1
MIN_WIDTH = 72

MAX_ROWS = 40  # lines of the map, and of the table of instances
MAX_INSTANCES = 16  # instances that are listed one by one, with their commands

ASCII = str.maketrans({"·": "-", "–": "-", "…": "...", "×": "x"})


@dataclass(frozen=True, slots=True)
class Command:
    """What is started for an instance: its command, and the variables added to the user's environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The contents of a report. ``commands`` are in the order of ``plan.instances``; ``front`` is False for plans
    without a front."""

    machine: Machine
    plan: Plan
    commands: Sequence[Command]
    warnings: Sequence[str]
    forecast: Forecast | None = None
    front: bool = True


def report_json(report: PlanReport) -> dict[str, Any]:
    """The document of ``launch topology --json``."""
    document = report.plan.to_json()
    document["instances"] = [
        _with_command(entry, command) for entry, command in zip(document["instances"], report.commands, strict=True)
    ]
    document["predicted"] = report.forecast.to_json() if report.forecast else None
    return {
        "schema": SCHEMA,
        "machine": report.machine.to_json(),
        "plan": document,
        "warnings": list(report.warnings),
    }


def refused_json(machine: Machine, reason: str) -> dict[str, Any]:
    """The document of ``launch topology --json`` if the machine cannot satisfy the request: without a plan."""
    return {
        "schema": SCHEMA,
        "machine": machine.to_json(),
        "plan": None,
        "warnings": list(machine.warnings),
        "error": reason,
    }


def _with_command(entry: dict[str, Any], command: Command) -> dict[str, Any]:
    why = entry.pop("why")
    return {**entry, "command": list(command.command), "env": dict(command.env), "why": why}


def report_text(report: PlanReport, width: int, *, unicode: bool = True) -> Text:
    """The report as text, in lines of at most ``width`` columns (at least 72), except for longer words.

    Colours only repeat what the characters say. ``unicode`` False restricts it to ASCII.
    """
    plan, front = report.plan, report.front
    width = max(width, MIN_WIDTH)
    sections = [
        _machine_lines(report.machine, width),
        _map_lines(report.machine, plan, width, front),
        _instance_lines(plan, width),
        *([forecast_lines(report.forecast, width)] if report.forecast else []),
        _reason_lines(plan, width, front),
        _command_lines(plan, report.commands, width),
        _warning_lines(report.warnings, width),
    ]
    return _joined(sections, unicode)


def refused_text(machine: Machine, width: int, *, unicode: bool = True) -> Text:
    """The machine as in the report, without a plan, because the machine cannot satisfy the request."""
    width = max(width, MIN_WIDTH)
    cores = tuple(core.cpus[0] for core in machine.cores)
    drawn = draw_cores(machine, Plan((), (), cores), width)[:MAX_ROWS]
    sections = [
        _machine_lines(machine, width),
        [*drawn, Text(""), Text(f"  {UNUSED} a usable core, without an instance", "dim")],
        _warning_lines(machine.warnings, width),
    ]
    return _joined(sections, unicode)


def _joined(sections: Sequence[Sequence[Text]], unicode: bool) -> Text:
    text = Text()
    for lines in sections:
        for line in map(without_controls, lines):
            line.rstrip()
            text.append_text(line if unicode else _to_ascii(line)).append("\n")
        text.append("\n")
    text.rstrip()
    return text


def _to_ascii(line: Text) -> Text:
    plain = Text(line.plain.translate(ASCII).encode("ascii", "replace").decode())
    if len(plain.plain) == len(line.plain):
        plain.spans = line.spans
    return plain


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


# -- the machine ---------------------------------------------------------------------------------------------


def _machine_lines(machine: Machine, width: int) -> list[Text]:
    packages = {core.package for core in machine.cores} - {None}
    facts = [
        *([_number(len(packages), "package")] if packages else []),
        *([_number(len(machine.nodes), "node")] if machine.nodes else []),
        _number(len(machine.cores), "usable core"),
        f"{_number(len(machine.allowed), 'cpu')} allowed of {len(machine.present)}",
    ]
    lines = [
        *wrap(machine.title, width, style="bold"),
        *wrap(" · ".join(facts), width, "  ", first="  "),
    ]
    lines += _fact("memory", _memory_text(machine), width)
    lines += _fact("instructions", ", ".join(machine.isa), width)
    lines += _fact("limits", _limits_text(machine), width)
    return lines


def _fact(name: str, value: str, width: int) -> Iterator[Text]:
    if value:
        yield from wrap(f"{name}: {value}", width, "    ", first="  ")


def _memory_text(machine: Machine) -> str:
    # A node without cpus and memory is a place for memory that is not there, such as that of a GPU's partition.
    known = [node for node in machine.nodes if node.memory_bytes or (node.cpus and node.memory_bytes is not None)]
    if not known:
        return gib(machine.memory_bytes) if machine.memory_bytes is not None else ""
    runs = itertools.groupby(known, key=lambda node: (gib(node.memory_bytes or 0), not node.cpus))
    return ", ".join(
        f"{amount} on {_node_names([node.id for node in nodes])}{' (memory only)' if alone else ''}"
        for (amount, alone), nodes in runs
    )


def _node_names(nodes: Sequence[int]) -> str:
    return f"node {nodes[0]}" if len(nodes) == 1 else f"each of nodes {format_cpu_list(nodes)}"


def _limits_text(machine: Machine) -> str:
    limits = machine.limits
    parts = []
    if limits.cpu_quota is not None:
        parts.append(f"cpu quota {limits.cpu_quota:g}")
    if set(machine.allowed) != set(machine.online):
        parts.append(f"cpus {format_cpu_list(machine.allowed)} of {format_cpu_list(machine.online)}")
    if machine.isolated:
        parts.append(f"isolated cpus {format_cpu_list(machine.isolated)}")
    if limits.memory_nodes is not None and set(limits.memory_nodes) != {node.id for node in machine.nodes}:
        parts.append(f"memory nodes {format_cpu_list(limits.memory_nodes)}")
    if limits.memory_bytes is not None:
        parts.append(f"memory {gib(limits.memory_bytes)}")
    return ", ".join(parts)


def _map_lines(machine: Machine, plan: Plan, width: int, front: bool) -> list[Text]:
    lines = draw_cores(machine, plan, width)
    if len(lines) > MAX_ROWS:
        more = len(lines) - MAX_ROWS
        lines = [*lines[:MAX_ROWS], Text(f"  … and {more} more lines; --json lists every core", "dim")]
    return [*lines, Text(""), *_legend_lines(plan, width, front)]


def _legend_lines(plan: Plan, width: int, front: bool) -> Iterator[Text]:
    line = ""
    for part in legend(plan, front):
        if line and len(line) + len(part) + 4 > width:
            yield Text(f"  {line}", "dim")
            line = ""
        line += f"; {part}" if line else part
    yield Text(f"  {line}", "dim")


# -- the instances -------------------------------------------------------------------------------------------


def _alike(instance: InstancePlan) -> tuple[object, ...]:
    return instance.threads, instance.nodes, instance.memory, instance.length_class, instance.why


def _group_equal(plan: Plan) -> list[list[InstancePlan]]:
    """The instances one by one, or, if there are many, consecutive equal ones together."""
    if len(plan.instances) <= MAX_INSTANCES:
        return [[instance] for instance in plan.instances]
    return [list(bundle) for _, bundle in itertools.groupby(plan.instances, key=_alike)]


def _instance_lines(plan: Plan, width: int) -> list[Text]:
    bundles = _group_equal(plan)
    shown = bundles[:MAX_ROWS]
    classes = any(instance.length_class for instance in plan.instances)
    heads = ["instance", "cpus", "threads", "memory", *(["tokens"] if classes else [])]
    rows = [_instance_cells(bundle, classes) for bundle in shown]
    others = sum(
        max([len(head), *(len(row[index]) for row in rows)]) + 2 for index, head in enumerate(heads) if index != 1
    )
    for row in rows:
        row[1] = Text(shorten(row[1].plain, max(12, width - others - 2)))
    lines = table(heads, rows, "  ")
    if len(shown) < len(bundles):
        lines.append(Text(f"  … and {len(bundles) - len(shown)} more; --json lists them all", "dim"))
    return lines


def _instance_cells(bundle: Sequence[InstancePlan], classes: bool) -> list[Text]:
    first = bundle[0]
    mark = mark_of(first.id) if len(bundle) == 1 else Mark("", "")
    return [
        Text(format_cpu_list(instance.id for instance in bundle), mark.style),
        Text(format_cpu_list(cpu for instance in bundle for cpu in instance.cpus)),
        Text(f"{first.threads}{' each' if len(bundle) > 1 else ''}"),
        Text(_memory_cell(first)),
        *([Text(first.length_class.name if first.length_class else "any")] if classes else []),
    ]


def _memory_cell(instance: InstancePlan) -> str:
    if not instance.nodes:
        return "local"
    return f"{instance.memory} {'node' if len(instance.nodes) == 1 else 'nodes'} {format_cpu_list(instance.nodes)}"


def _reason_lines(plan: Plan, width: int, front: bool) -> list[Text]:
    reasons: dict[str, list[int]] = {}
    for instance in plan.instances:
        reasons.setdefault(instance.why, []).append(instance.id)
    lines = [Text("Why", "bold")]
    for reason, ids in itertools.islice(reasons.items(), MAX_INSTANCES):
        lines += wrap(f"{format_cpu_list(ids)}  {reason}", width, "      ", first="  ")
    if len(reasons) > MAX_INSTANCES:
        lines.append(Text(f"  … and {len(reasons) - MAX_INSTANCES} more; --json lists them all", "dim"))
    if plan.reserved_cpus:
        lines += wrap(_reserved_reason(plan, front), width, "      ", first="  ")
    return lines


def _reserved_reason(plan: Plan, front: bool) -> str:
    cpus = f"cpu{'' if len(plan.reserved_cpus) == 1 else 's'} {format_cpu_list(plan.reserved_cpus)}"
    if not front:
        return f"{RESERVED}  Reserved as requested: nothing is started on {cpus}."
    return (
        f"{RESERVED}  Reserved for the front: HTTP, tokenizing and dispatching run on {cpus} and disturb no instance."
    )


def _command_lines(plan: Plan, commands: Sequence[Command], width: int) -> list[Text]:
    lines = [Text("Commands", "bold")]
    shown = commands if len(commands) <= MAX_INSTANCES else commands[:2]
    common = _common_env([command.env for command in commands])
    if common:
        lines += _shell_lines([f"{name}={value}" for name, value in common.items()], width, "env for all: ")
    for instance, command in zip(plan.instances, shown, strict=False):
        own = [f"{name}={value}" for name, value in command.env.items() if name not in common]
        lines += _shell_lines([*own, *command.command], width, f"{instance.id}: ", mark_of(instance.id).style)
    if len(shown) < len(commands):
        lines.append(Text(f"  … and {len(commands) - len(shown)} more of the same form; --json lists them all", "dim"))
    return lines


def _common_env(envs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = envs[0] if envs else {}
    return {name: value for name, value in first.items() if all(env.get(name) == value for env in envs)}


def _shell_lines(words: Sequence[str], width: int, head: str, style: str = "") -> Iterator[Text]:
    """A command in shell syntax, with line continuations that keep options next to their values."""
    line = Text("  ").append(head, style)
    started = False
    for word in _with_values(words):
        if started and len(line) + len(word) + 3 > width:
            yield line.append(" \\")
            line, started = Text("      "), False
        line.append(f" {word}" if started else word)
        started = True
    yield line


def _with_values(words: Sequence[str]) -> Iterator[str]:
    option = ""
    for word in map(shlex.quote, words):
        if option and word.startswith("-"):
            yield option
            option = ""
        if word.startswith("-"):
            option = word
        else:
            yield f"{option} {word}" if option else word
            option = ""
    if option:
        yield option


def _warning_lines(warnings: Sequence[str], width: int) -> list[Text]:
    if not warnings:
        return [Text("No warnings")]
    lines = [Text("Warnings", "bold")]
    for warning in warnings:
        lines += wrap(warning, width, "    ", "yellow", first="  ! ")
    return lines
