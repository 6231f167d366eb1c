"""The topology report: machine and plan for people, and as the JSON document of schema 1.

Pure text making, so that ``launch topology`` and ``--dry-run`` print the same and tests can read it. Nothing is
printed here, and nothing is decided.
"""

from __future__ import annotations

import itertools
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from launcher.core.cpuset import format_cpu_list
from launcher.core.memory import gib
from launcher.core.plan import InstancePlan, Plan
from launcher.core.topology import Core, Machine

SCHEMA = 1

RESERVED, UNUSED, SHARED = "r", ".", "+"
# `r` means reserved and is left out.
SYMBOLS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqstuvwxyz"
COLOURS = (
    "cyan",
    "green",
    "magenta",
    "yellow",
    "blue",
    "bright_red",
    "bright_cyan",
    "bright_green",
    "bright_magenta",
)

CORES_PER_LINE = (72, 64, 56, 48, 40, 32, 24, 16)
MOST_ROWS = 64  # lines of the drawing
MOST_INSTANCES = 16  # instances that are listed one by one, and their commands
MOST_LIST = 28  # characters of a cpu list in the drawing

ASCII = str.maketrans({"·": "-", "–": "-", "…": "...", "×": "x"})


@dataclass(frozen=True, slots=True)
class Command:
    """What is started for an instance: the words of the command, and what is set beside the user's environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]


def report_json(machine: Machine, plan: Plan, commands: Sequence[Command], warnings: Sequence[str]) -> dict[str, Any]:
    """The document of ``launch topology --json``. ``commands`` are in the order of ``plan.instances``."""
    document = plan.to_json()
    document["instances"] = [
        _with_command(entry, command) for entry, command in zip(document["instances"], commands, strict=True)
    ]
    return {"schema": SCHEMA, "machine": machine.to_json(), "plan": document, "warnings": list(warnings)}


def _with_command(entry: dict[str, Any], command: Command) -> dict[str, Any]:
    why = entry.pop("why")
    return {**entry, "command": list(command.command), "env": dict(command.env), "why": why}


def report_text(
    machine: Machine,
    plan: Plan,
    commands: Sequence[Command],
    warnings: Sequence[str],
    width: int,
    *,
    unicode: bool = True,
) -> Text:
    """The report for people, in lines of at most ``width`` columns, single words that are longer apart.

    Colours only repeat what the characters say. ``unicode`` False keeps to ASCII.
    """
    width = max(width, 60)
    sections = [
        _machine_lines(machine, width),
        _drawing(machine, plan, width),
        _instance_lines(plan, width),
        _reason_lines(plan, width),
        _command_lines(plan, commands, width),
        _warning_lines(warnings, width),
    ]
    text = Text()
    for lines in sections:
        for line in lines:
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


def _wrapped(text: str, width: int, indent: str = "", style: str = "", first: str | None = None) -> Iterator[Text]:
    start = indent if first is None else first
    for line in textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ):
        yield Text(line, style)


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
    name = machine.model or machine.vendor or "unknown processor"
    lines = [
        *_wrapped(f"{name} ({machine.arch})", width, style="bold"),
        *_wrapped(" · ".join(facts), width, "  ", first="  "),
    ]
    lines += _fact("memory", _memory_text(machine), width)
    lines += _fact("instructions", ", ".join(machine.isa), width)
    lines += _fact("limits", _limits_text(machine), width)
    return lines


def _fact(name: str, value: str, width: int) -> Iterator[Text]:
    if value:
        yield from _wrapped(f"{name}: {value}", width, "    ", first="  ")


def _memory_text(machine: Machine) -> str:
    known = [node for node in machine.nodes if node.memory_bytes is not None]
    if not known:
        return gib(machine.memory_bytes) if machine.memory_bytes is not None else ""
    runs = itertools.groupby(known, key=lambda node: gib(node.memory_bytes or 0))
    return ", ".join(f"{amount} on {_node_names([node.id for node in nodes])}" for amount, nodes in runs)


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


# -- the drawing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mark:
    symbol: str
    style: str


class _Marks:
    """Which character and colour stands for each core."""

    def __init__(self, plan: Plan) -> None:
        self._owners: dict[int, list[int]] = {}
        for instance in plan.instances:
            for cpu in instance.cpus:
                self._owners.setdefault(cpu, []).append(instance.id)
        self._reserved = set(plan.reserved_cpus)

    def of(self, core: Core) -> _Mark:
        owners = self._owners.get(core.cpus[0], [])
        if len(owners) > 1:
            return _Mark(SHARED, "bold")
        if owners:
            return mark_of(owners[0])
        return _Mark(RESERVED, "bold") if core.cpus[0] in self._reserved else _Mark(UNUSED, "dim")


def mark_of(instance: int) -> _Mark:
    """Character and colour of an instance; both repeat when there are more instances than characters."""
    return _Mark(SYMBOLS[instance % len(SYMBOLS)], COLOURS[instance % len(COLOURS)])


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the drawing: some L3 groups of one node. None: not known."""

    package: int | None
    node: int | None
    kind: str
    groups: tuple[tuple[Core, ...], ...]

    @property
    def cores(self) -> list[Core]:
        return [core for group in self.groups for core in group]

    @property
    def place(self) -> tuple[int | None, int | None, str]:
        return self.package, self.node, self.kind


def _rows(machine: Machine, columns: int) -> list[_Row]:
    """The cores by package, node, kind and L3 group, in rows of at most ``columns`` characters."""

    def place(core: Core) -> tuple[int, int, bool]:
        return _or_last(core.package), _or_last(core.node), core.kind == "efficiency"

    rows = []
    in_order = sorted(machine.cores, key=lambda core: (*place(core), _or_last(core.l3), core.cpus[0]))
    for _, here in itertools.groupby(in_order, key=place):
        cores = list(here)
        groups = [tuple(group) for _, group in itertools.groupby(cores, key=lambda core: core.l3)]
        first = cores[0]
        rows += [_Row(first.package, first.node, first.kind, line) for line in _fill_lines(groups, columns)]
    return rows


def _or_last(number: int | None) -> int:
    return 1 << 30 if number is None else number


def _fill_lines(groups: Iterable[tuple[Core, ...]], columns: int) -> Iterator[tuple[tuple[Core, ...], ...]]:
    line: list[tuple[Core, ...]] = []
    for group in groups:
        pieces = [group[start : start + columns] for start in range(0, len(group), columns)]
        for piece in pieces:
            if line and sum(len(one) + 1 for one in line) + len(piece) > columns:
                yield tuple(line)
                line = []
            line.append(piece)
    if line:
        yield tuple(line)


def _drawing(machine: Machine, plan: Plan, width: int) -> list[Text]:
    """The table of cores, with as many cores to a line as the width allows."""
    for columns in CORES_PER_LINE:
        lines = _table_of_cores(machine, plan, columns)
        if max(map(len, lines)) <= width:
            break
    if len(lines) > MOST_ROWS:
        more = len(lines) - MOST_ROWS
        lines = [*lines[:MOST_ROWS], Text(f"  … and {more} more lines like these; --json lists every core", "dim")]
    return [*lines, Text(""), *_legend(plan, width)]


def _table_of_cores(machine: Machine, plan: Plan, columns: int) -> list[Text]:
    marks = _Marks(plan)
    kinds = len({core.kind for core in machine.cores}) > 1
    siblings = any(len(core.cpus) > 1 for core in machine.cores)
    heads = ["package", "node", *(["kind"] if kinds else []), "L3", "cores", "cpus"]
    heads += ["siblings, idle"] if siblings else []
    rows = _rows(machine, columns)
    pairs = zip(rows, [None, *rows], strict=False)
    return _table(heads, [_row_cells(row, marks, kinds, siblings, before) for row, before in pairs], "  ")


def _row_cells(row: _Row, marks: _Marks, kinds: bool, siblings: bool, before: _Row | None) -> list[Text]:
    again = before is not None and before.place == row.place
    same_package = before is not None and before.package == row.package
    groups = [core.l3 for core in row.cores if core.l3 is not None]
    continued = again and before is not None and before.cores[-1].l3 == row.cores[0].l3 == row.cores[-1].l3
    drawn = Text(" ").join(_drawn(group, marks) for group in row.groups)
    cells = [
        Text("" if same_package else _id(row.package)),
        Text("" if again else _id(row.node)),
        *([Text("" if again else row.kind)] if kinds else []),
        Text("" if continued else _short(format_cpu_list(groups), 9) or "-"),
        drawn,
        Text(_short(format_cpu_list(core.cpus[0] for core in row.cores))),
    ]
    if siblings:
        cells.append(Text(_short(format_cpu_list(cpu for core in row.cores for cpu in core.cpus[1:])) or "-", "dim"))
    return cells


def _drawn(cores: Iterable[Core], marks: _Marks) -> Text:
    text = Text()
    for core in cores:
        mark = marks.of(core)
        text.append(mark.symbol, mark.style)
    return text


def _id(number: int | None) -> str:
    return "-" if number is None else str(number)


def _short(cpus: str, most: int = MOST_LIST) -> str:
    return cpus if len(cpus) <= most else cpus[: most - 1].rsplit(",", 1)[0] + ",…"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Text]], indent: str) -> list[Text]:
    """Columns as wide as their longest cell, two blanks between them, nothing behind the last."""
    widths = [max([len(head), *(len(row[index]) for row in rows)]) for index, head in enumerate(heads)]
    lines = []
    for row in [[Text(head, "dim") for head in heads], *rows]:
        line = Text(indent)
        for cell, size in zip(row, widths, strict=True):
            line.append_text(cell).append(" " * (size - len(cell) + 2))
        lines.append(line)
    return lines


def _legend(plan: Plan, width: int) -> Iterator[Text]:
    parts = ["0, 1, … the instance that uses the core"]
    if plan.reserved_cpus:
        parts.append(f"{RESERVED} reserved for the front")
    if plan.unused_cpus:
        parts.append(f"{UNUSED} unused")
    if len({cpu for instance in plan.instances for cpu in instance.cpus}) < sum(len(i.cpus) for i in plan.instances):
        parts.append(f"{SHARED} shared by several instances")
    if len(plan.instances) > 10:
        parts.append(
            f"A is instance 10{', and so on up to z, then again from 0' if len(plan.instances) > 36 else ''}"
        )
    yield from _wrapped("; ".join(parts), width, "  ", "dim", first="  ")


# -- the instances -------------------------------------------------------------------------------------------


def _alike(instance: InstancePlan) -> tuple[object, ...]:
    return instance.threads, instance.nodes, instance.memory, instance.length_class, instance.why


def _bundles(plan: Plan) -> list[list[InstancePlan]]:
    """The instances one by one, or, where they are many, neighbours that are alike together."""
    if len(plan.instances) <= MOST_INSTANCES:
        return [[instance] for instance in plan.instances]
    return [list(bundle) for _, bundle in itertools.groupby(plan.instances, key=_alike)]


def _instance_lines(plan: Plan, width: int) -> list[Text]:
    bundles = _bundles(plan)
    classes = any(instance.length_class for instance in plan.instances)
    heads = ["instance", "cpus", "threads", "memory", *(["tokens"] if classes else [])]
    rows = []
    for bundle in bundles:
        first = bundle[0]
        ids = [instance.id for instance in bundle]
        mark = mark_of(first.id) if len(bundle) == 1 else _Mark("", "")
        cpus = format_cpu_list(cpu for instance in bundle for cpu in instance.cpus)
        rows.append(
            [
                Text(format_cpu_list(ids), mark.style),
                Text(_short(cpus, width - 48)),
                Text(f"{first.threads}{' each' if len(bundle) > 1 else ''}"),
                Text(_memory_cell(first)),
                *([Text(first.length_class.name if first.length_class else "any")] if classes else []),
            ]
        )
    return _table(heads, rows, "  ")


def _memory_cell(instance: InstancePlan) -> str:
    if not instance.nodes:
        return "local"
    return f"{instance.memory} {'node' if len(instance.nodes) == 1 else 'nodes'} {format_cpu_list(instance.nodes)}"


def _reason_lines(plan: Plan, width: int) -> list[Text]:
    reasons: dict[str, list[int]] = {}
    for instance in plan.instances:
        reasons.setdefault(instance.why, []).append(instance.id)
    lines = [Text("Why", "bold")]
    for reason, ids in itertools.islice(reasons.items(), MOST_INSTANCES):
        lines += _wrapped(f"{format_cpu_list(ids)}  {reason}", width, "      ", first="  ")
    if len(reasons) > MOST_INSTANCES:
        lines.append(Text(f"  … and {len(reasons) - MOST_INSTANCES} more; --json has them all", "dim"))
    if plan.reserved_cpus:
        lines += _wrapped(_reserved_reason(plan), width, "      ", first="  ")
    return lines


def _reserved_reason(plan: Plan) -> str:
    cpus = f"cpu{'' if len(plan.reserved_cpus) == 1 else 's'} {format_cpu_list(plan.reserved_cpus)}"
    return (
        f"{RESERVED}  Reserved for the front: HTTP, tokenizing and dispatching run on {cpus} and disturb no instance."
    )


def _command_lines(plan: Plan, commands: Sequence[Command], width: int) -> list[Text]:
    lines = [Text("Commands", "bold")]
    shown = commands if len(commands) <= MOST_INSTANCES else commands[:2]
    common = _common_env([command.env for command in commands])
    if common:
        lines += _shell_lines([f"{name}={value}" for name, value in common.items()], width, "env for all: ")
    for instance, command in zip(plan.instances, shown, strict=False):
        own = [f"{name}={value}" for name, value in command.env.items() if name not in common]
        lines += _shell_lines([*own, *command.command], width, f"{instance.id}: ", mark_of(instance.id).style)
    if len(shown) < len(commands):
        lines.append(Text(f"  … and {len(commands) - len(shown)} more in the same way; --json has them all", "dim"))
    return lines


def _common_env(envs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = envs[0] if envs else {}
    return {name: value for name, value in first.items() if all(env.get(name) == value for env in envs)}


def _shell_lines(words: Sequence[str], width: int, head: str, style: str = "") -> Iterator[Text]:
    """Words of a command, broken as a shell takes it, options next to their values."""
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
        lines += _wrapped(warning, width, "    ", "yellow", first="  ! ")
    return lines
