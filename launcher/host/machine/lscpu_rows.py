"""Parses the formats of ``lscpu`` with one entry per cpu: ``lscpu -p``, ``lscpu -e`` and ``lscpu -e -J``.

Separate because both the comparison with the kernel's files and ``--machine FILE`` use these rows. The columns are
those of lscpu(1); the ones that say nothing about the topology are skipped.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.core.machine.cpuset import MAX_ID
from launcher.errors import UsageError

DEFAULT_COLUMNS = ("cpu", "core", "socket", "node")
MAX_DIGITS = 9  # cache ids have up to 32 bits
_NUMBERS = re.compile(r"cpu|core|socket|node|l\d[a-z]*")
_YES, _NO = {"y", "yes", "true"}, {"n", "no", "false"}
_HEADER_WORD = re.compile(r"[A-Z][A-Za-z0-9%:]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One cpu as lscpu prints it; blanks are None. ``caches`` are pairs of name (``l1d``) and number."""

    cpu: int
    core: int | None = None
    socket: int | None = None
    node: int | None = None
    online: bool | None = None
    caches: tuple[tuple[str, int], ...] = ()
    max_mhz: float | None = None

    def cache(self, name: str) -> int | None:
        """The number of the cache of that name, None when unknown."""
        return dict(self.caches).get(name)


def parse_rows(text: str, columns: Iterable[str] | None = None) -> list[Row]:
    """The rows of ``lscpu -p``; with ``columns`` None, they come from the header comment. Raises ``UsageError``."""
    names = tuple(columns) if columns is not None else _header(text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if columns is None:
        _check_cells(lines, names)
    found = (_row(dict(zip(names, line.split(","), strict=False)), line, "lscpu -p") for line in lines)
    return [row for row in found if row is not None]


def _check_cells(lines: Iterable[str], names: tuple[str, ...]) -> None:
    """Refuse rows without all of the leading columns. The caches at the end of a row may be missing."""
    needed = max((index + 1 for index, name in enumerate(names) if name in DEFAULT_COLUMNS), default=1)
    for line in lines:
        count = line.count(",") + 1
        if count < needed:
            raise UsageError(
                f"{line!r} is not a row of `lscpu -p` with the columns {','.join(names)}: it has {count} cells; "
                "the text may be incomplete"
            )


def is_table_header(line: str) -> bool:
    """Whether this is the first line of ``lscpu -e``: names of columns in capitals, CPU among them."""
    words = line.split()
    return "CPU" in words and all(_HEADER_WORD.fullmatch(word) for word in words) and "," not in line


def parse_table(header: str, lines: Iterable[str]) -> list[Row]:
    """The rows of ``lscpu -e`` below ``header``. Raises ``UsageError``."""
    found = (_row(_cells(header, line), line.strip(), "lscpu -e") for line in lines if not is_table_header(line))
    return [row for row in found if row is not None]


def parse_json_rows(entries: Any) -> list[Row]:
    """The rows of ``lscpu -e -J``, from its list ``cpus``. Raises ``UsageError``."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError("'cpus' is not a list of objects, as `lscpu -e -J` prints it")
    found = (_row({str(k): _json_text(v) for k, v in entry.items()}, str(entry), "lscpu -e -J") for entry in entries)
    return [row for row in found if row is not None]


def parts_of(labels: Mapping[int, Hashable]) -> dict[Hashable, list[int]]:
    """The cpus with each label, ascending."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for cpu in sorted(labels):
        parts[labels[cpu]].append(cpu)
    return parts


def _header(text: str) -> tuple[str, ...]:
    """The columns of the last comment that names any; older versions print several comments."""
    found: tuple[str, ...] = DEFAULT_COLUMNS
    for line in text.splitlines():
        names = tuple(name.strip().lower() for name in line.strip().lstrip("#").split(","))
        if line.lstrip().startswith("#") and "cpu" in names:
            found = names
    return found


def _cells(header: str, line: str) -> dict[str, str]:
    """The cells of a line by column; if some are blank, by their position under the header."""
    names, words = header.split(), line.split()
    if len(words) == len(names):
        return dict(zip(names, words, strict=True))
    spans = [(match.start(), match.end()) for match in re.finditer(r"\S+", header)]
    cells: dict[str, str] = {}
    for match in re.finditer(r"\S+", line):
        nearest = min(range(len(names)), key=lambda one: _distance(spans[one], match.span()))
        if names[nearest] in cells:
            raise UsageError(f"{line.strip()!r} has {len(words)} cells and `lscpu -e` has {len(names)} columns")
        cells[names[nearest]] = match.group()
    return cells


def _distance(column: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """How far a cell is from a column: the gap between them, then that of their right ends."""
    return max(0, column[0] - cell[1], cell[0] - column[1]), abs(column[1] - cell[1])


def _json_text(value: Any) -> str:
    return "" if value is None else str(value)


def _row(named: Mapping[str, str], line: str, command: str) -> Row | None:
    """None for a blank row, which lscpu prints if it knows nothing."""
    fields: dict[str, str] = {}
    for name, value in named.items():
        key, text = name.strip().lower(), value.strip().strip("\"'")
        fields[key] = text
        # All caches may be one column: header l1d:l1i:l2, value 0:0:0.
        fields.update(zip(key.split(":"), text.split(":"), strict=False))
    numbers = {
        name: _number(value, f"{line!r} is not a row of `{command}`")
        for name, value in fields.items()
        if _NUMBERS.fullmatch(name)
    }
    cpu = numbers.get("cpu")
    if cpu is None:
        return None
    for name in ("cpu", "node"):
        if (number := numbers.get(name) or 0) > MAX_ID:
            raise UsageError(
                f"{line!r} is not a row of `{command}`: {name} {number} exceeds the largest supported id, {MAX_ID}"
            )
    caches = tuple((name, number) for name, number in numbers.items() if name[0] == "l" and number is not None)
    online = fields.get("online", "").lower()
    return Row(
        cpu=cpu,
        core=numbers.get("core"),
        socket=numbers.get("socket"),
        node=numbers.get("node"),
        online=True if online in _YES else False if online in _NO else None,
        caches=caches,
        max_mhz=_megahertz(fields.get("maxmhz", "")),
    )


def _number(value: str, complaint: str) -> int | None:
    if value in ("", "-"):
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        raise UsageError(f"{complaint}: {value!r} is not a number")
    return int(value)


def _megahertz(text: str) -> float | None:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
