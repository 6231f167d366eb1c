"""The map of a machine and its plan in characters: one per core, by package, node and L3 group.

Separate from the report, of which it is one part, because other sections use its symbols too. Colours only repeat what
the characters say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Core, Machine
from launcher.core.planning.plan import Plan
from launcher.core.report.text_format import shorten, table

RESERVED, UNUSED, SHARED = "r", ".", "+"
# `r` means reserved and is not a symbol of an instance.
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

CORES_PER_LINE = (72, 64, 56, 48, 40, 32, 24, 16, 8)
LIST_LENGTHS = (28, 14, 9)  # maximum length of a cpu list, in characters


@dataclass(frozen=True, slots=True)
class Mark:
    """The symbol and colour of a core or an instance."""

    symbol: str
    style: str


class Marks:
    """The mark of each core."""

    def __init__(self, plan: Plan) -> None:
        self._owners: dict[int, list[int]] = {}
        for instance in plan.instances:
            for cpu in instance.cpus:
                self._owners.setdefault(cpu, []).append(instance.id)
        self._reserved = set(plan.reserved_cpus)

    def of(self, core: Core) -> Mark:
        owners = self._owners.get(core.cpus[0], [])
        if len(owners) > 1:
            return Mark(SHARED, "bold")
        if owners:
            return mark_of(owners[0])
        return Mark(RESERVED, "bold") if core.cpus[0] in self._reserved else Mark(UNUSED, "dim")


def mark_of(instance: int) -> Mark:
    """The mark of an instance; marks repeat if there are more instances than symbols."""
    return Mark(SYMBOLS[instance % len(SYMBOLS)], COLOURS[instance % len(COLOURS)])


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the map: some L3 groups of one node. None: unknown."""

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


@dataclass(frozen=True, slots=True)
class _Columns:
    """The optional columns of the map, and the maximum length of a cpu list in it."""

    kinds: bool
    siblings: bool
    longest: int


def _rows(machine: Machine, columns: int) -> list[_Row]:
    """The cores by package, node, kind and L3 group, in lines of at most ``columns`` characters."""

    def place(core: Core) -> tuple[int, int, bool]:
        return or_last(core.package), or_last(core.node), core.kind == "efficiency"

    rows = []
    in_order = sorted(machine.cores, key=lambda core: (*place(core), or_last(core.l3), core.cpus[0]))
    for _, here in itertools.groupby(in_order, key=place):
        cores = list(here)
        groups = [tuple(group) for _, group in itertools.groupby(cores, key=lambda core: core.l3)]
        first = cores[0]
        rows += [_Row(first.package, first.node, first.kind, line) for line in _fill_lines(groups, columns)]
    return rows


def or_last(number: int | None) -> int:
    """A sort key that puts unknown numbers last."""
    return 1 << 30 if number is None else number


def _fill_lines(groups: Sequence[tuple[Core, ...]], columns: int) -> list[tuple[tuple[Core, ...], ...]]:
    """The groups in as few lines of at most ``columns`` characters as possible, balanced in length."""
    lines = _fill_greedily(groups, columns)
    length = sum(len(group) + 1 for group in groups)
    narrower = range(-(-length // len(lines)) - 1, columns)
    balanced = (_fill_greedily(groups, most) for most in narrower)
    return next((better for better in balanced if len(better) == len(lines)), lines)


def _fill_greedily(groups: Sequence[tuple[Core, ...]], columns: int) -> list[tuple[tuple[Core, ...], ...]]:
    lines: list[list[tuple[Core, ...]]] = []
    free = 0
    for group in groups:
        for piece in (group[start : start + columns] for start in range(0, len(group), columns)):
            if len(piece) >= free:
                lines.append([])
                free = columns + 1
            lines[-1].append(piece)
            free -= len(piece) + 1
    return [tuple(line) for line in lines]


def draw_cores(machine: Machine, plan: Plan, width: int) -> list[Text]:
    """The map as a table, with as many cores per line as ``width`` columns allow; lines may end in spaces."""
    for longest, columns in itertools.product(LIST_LENGTHS, CORES_PER_LINE):
        lines = _table_of_cores(machine, plan, columns, longest)
        if max(len(line.plain.rstrip()) for line in lines) <= width:
            break
    return lines


def _table_of_cores(machine: Machine, plan: Plan, columns: int, longest: int) -> list[Text]:
    marks = Marks(plan)
    shown = _Columns(
        kinds=len({core.kind for core in machine.cores}) > 1,
        siblings=any(len(core.cpus) > 1 for core in machine.cores),
        longest=longest,
    )
    heads = ["package", "node", *(["kind"] if shown.kinds else []), "L3", "cores", "cpus"]
    heads += ["siblings"] if shown.siblings else []
    rows = _rows(machine, columns)
    pairs = zip(rows, [None, *rows], strict=False)
    return table(heads, [_row_cells(row, marks, shown, before) for row, before in pairs], "  ")


def _row_cells(row: _Row, marks: Marks, columns: _Columns, before: _Row | None) -> list[Text]:
    again = before is not None and before.place == row.place
    same_package = before is not None and before.package == row.package
    groups = [core.l3 for core in row.cores if core.l3 is not None]
    continued = again and before is not None and before.cores[-1].l3 == row.cores[0].l3 == row.cores[-1].l3
    drawn = Text(" ").join(_drawn(group, marks) for group in row.groups)
    cells = [
        Text("" if same_package else _id(row.package)),
        Text("" if same_package and before is not None and before.node == row.node else _id(row.node)),
        *([Text("" if again else row.kind)] if columns.kinds else []),
        Text("" if continued else shorten(format_cpu_list(groups), 9) or "-"),
        drawn,
        Text(shorten(format_cpu_list(core.cpus[0] for core in row.cores), columns.longest)),
    ]
    if columns.siblings:
        siblings = format_cpu_list(cpu for core in row.cores for cpu in core.cpus[1:])
        cells.append(Text(shorten(siblings, columns.longest) or "-", "dim"))
    return cells


def _drawn(cores: Iterable[Core], marks: Marks) -> Text:
    text = Text()
    for core in cores:
        mark = marks.of(core)
        text.append(mark.symbol, mark.style)
    return text


def _id(number: int | None) -> str:
    return "-" if number is None else str(number)


def legend(plan: Plan, front: bool = True) -> list[str]:
    """The meaning of the symbols in the map of this plan."""
    parts = ["0, 1, … the instance that uses the core (only its first cpu)"]
    if plan.reserved_cpus:
        parts.append(f"{RESERVED} reserved{' for the front' if front else ''}")
    if plan.unused_cpus:
        parts.append(f"{UNUSED} unused")
    used = [cpu for instance in plan.instances for cpu in instance.cpus]
    if len(used) > len(set(used)):
        parts.append(f"{SHARED} shared by several instances")
    if len(plan.instances) > len(SYMBOLS):
        parts.append("A is instance 10, and so on up to z, then again from 0")
    elif len(plan.instances) > 10:
        parts.append("A is instance 10, and so on")
    return parts
