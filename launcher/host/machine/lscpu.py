"""Compares the machine with the output of ``lscpu``, and builds a machine from that output alone.

Separate because lscpu is another program with its own format: it may be missing, crash, hang or print blanks, and then
there is nothing to compare with. Its CORE column is not unique (numbers repeat within a package on many machines), so
two cores that it merges are reported only if the kernel numbers them differently. The columns are those of
``lscpu -p`` (lscpu(1), "parsable format").
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.assemble import Cpus, KindHints, RawCpu, RawMachine, build_machine, group_cores
from launcher.core.machine.cpuset import MAX_ID, format_cpu_list
from launcher.core.machine.topology import Limits, Machine, Node
from launcher.errors import UsageError
from launcher.host.machine.file_tree import Tree

COLUMNS = ("cpu", "core", "socket", "node", "online")
DEFAULT_COLUMNS = ("cpu", "core", "socket", "node")
TIMEOUT = 1.0  # seconds after the files were read; the comparison must not delay the start
MAX_DIGITS = 9  # cache ids have up to 32 bits


@dataclass(frozen=True, slots=True)
class Row:
    """One cpu as lscpu prints it; blanks are None. ``caches`` are pairs of name (``l1d``) and number."""

    cpu: int
    core: int | None = None
    socket: int | None = None
    node: int | None = None
    online: bool | None = None
    caches: tuple[tuple[str, int], ...] = ()

    def cache(self, name: str) -> int | None:
        """The number of the cache of that name, None when unknown."""
        return dict(self.caches).get(name)


class LscpuProcess:
    """A running lscpu, terminated at the end of the ``with`` block.

    It starts before the files are read, so that both run at the same time.
    """

    def __init__(self, tree: Tree) -> None:
        command = ["lscpu", "-a", f"-p={','.join(COLUMNS).upper()}"]
        if not tree.live:
            command[1:1] = ["-s", str(tree.root)]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
                text=True,
                errors="replace",
            )
        except OSError:
            self._process = None

    def __enter__(self) -> LscpuProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def rows(self) -> list[Row]:
        """Its output; empty if lscpu is missing, fails, prints nothing or takes more than ``TIMEOUT`` seconds."""
        if self._process is None:
            return []
        try:
            output, _ = self._process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return []
        try:
            return parse_rows(output, COLUMNS) if self._process.returncode == 0 else []
        except UsageError:
            return []


def parse_rows(text: str, columns: Iterable[str] | None = None) -> list[Row]:
    """The rows of ``lscpu -p``; with ``columns`` None, they come from the header comment. Raises ``UsageError``."""
    names = tuple(columns) if columns is not None else _header(text)
    rows = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            row = _row(line.strip(), names)
            if row is not None:
                rows.append(row)
    return rows


def _header(text: str) -> tuple[str, ...]:
    """The columns of the last comment that names any; older versions print several comments."""
    found: tuple[str, ...] = DEFAULT_COLUMNS
    for line in text.splitlines():
        names = tuple(name.strip().lower() for name in line.lstrip("#").split(","))
        if line.startswith("#") and "cpu" in names:
            found = names
    return found


def _row(line: str, columns: tuple[str, ...]) -> Row | None:
    """None for a blank row, which lscpu prints if it knows nothing."""
    fields: dict[str, str] = {}
    for name, value in zip(columns, line.split(","), strict=False):
        fields[name] = value.strip()
        # With -p=CACHE, all caches are one column: header l1d:l1i:l2, value 0:0:0.
        fields.update(zip(name.split(":"), value.strip().split(":"), strict=False))
    if not fields.get("cpu"):
        return None
    numbers = {name: _number(value, line) for name, value in fields.items() if name != "online" and ":" not in name}
    caches = tuple((name, number) for name, number in numbers.items() if name.startswith("l") and number is not None)
    cpu = numbers["cpu"]
    if cpu is None:
        return None
    for name in ("cpu", "node"):
        if (number := numbers.get(name) or 0) > MAX_ID:
            raise UsageError(
                f"{line!r} is not a row of `lscpu -p`: {name} {number} exceeds the largest supported id, {MAX_ID}"
            )
    online = {"Y": True, "N": False}.get(fields.get("online", ""))
    return Row(cpu, numbers.get("core"), numbers.get("socket"), numbers.get("node"), online, caches)


def _number(value: str, line: str) -> int | None:
    if value in ("", "-"):
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        raise UsageError(f"{line!r} is not a row of `lscpu -p`: {value!r} is not a number")
    return int(value)


def compare(rows: list[Row], raw: RawMachine, core_id: Callable[[int], int | None], anomalies: Anomalies) -> None:
    """Add to ``anomalies`` where lscpu and the kernel's files disagree. ``core_id`` returns the kernel's, by cpu."""
    online = {row.cpu for row in rows if row.online}
    if not rows or (any(row.online is not None for row in rows) and not online):
        return
    if online and online != set(raw.online):
        difference = format_cpu_list(online ^ set(raw.online))
        anomalies.add("cpus that are online according to only one of lscpu and cpu/online: {}", f"cpus {difference}")
    known = {row.cpu: row for row in rows if row.cpu in set(raw.online)}
    packages = {cpu: one.package for cpu, one in raw.cpus.items() if one.package is not None}
    nodes = {cpu: node.id for node in reversed(raw.nodes) for cpu in node.cpus}
    _check_parts(
        "packages that differ between lscpu and topology/physical_package_id: {}",
        packages,
        {cpu: row.socket for cpu, row in known.items() if row.socket is not None},
        anomalies,
    )
    _check_parts(
        "nodes that differ between lscpu and node*/cpumap: {}",
        nodes,
        {cpu: row.node for cpu, row in known.items() if row.node is not None},
        anomalies,
    )
    _check_cores(known, group_cores(raw.cpus, raw.online, Anomalies()), core_id, anomalies)


def _check_parts(sentence: str, ours: Mapping[int, int], theirs: Mapping[int, int], anomalies: Anomalies) -> None:
    """Compare the grouping only: the numbers may differ."""
    common = ours.keys() & theirs.keys()
    their_parts = {frozenset(part) for part in _parts({cpu: theirs[cpu] for cpu in common}).values()}
    for name, part in _parts({cpu: ours[cpu] for cpu in common}).items():
        if frozenset(part) not in their_parts:
            anomalies.add(sentence, f"{name} of cpus {format_cpu_list(part)}")


def _parts(labels: Mapping[int, Hashable]) -> dict[Hashable, list[int]]:
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for cpu in sorted(labels):
        parts[labels[cpu]].append(cpu)
    return parts


def _check_cores(
    known: Mapping[int, Row], groups: Iterable[Cpus], core_id: Callable[[int], int | None], anomalies: Anomalies
) -> None:
    labels = {cpu: (row.socket, row.core) for cpu, row in known.items() if row.core is not None}
    for group in groups:
        if len({labels[cpu] for cpu in group if cpu in labels}) > 1:
            anomalies.add(
                "siblings (topology/core_cpus) that lscpu reports as separate cores: {}",
                f"cpus {format_cpu_list(group)}",
            )
    group_of = {cpu: group for group in groups for cpu in group}
    for merged in _parts(labels).values():
        if len({group_of[cpu] for cpu in merged}) > 1 and len({core_id(cpu) for cpu in merged}) > 1:
            anomalies.add(
                "cpus that lscpu reports as one core, but topology/core_cpus and core_id do not: {}",
                f"cpus {format_cpu_list(merged)}",
            )


def machine_from_lscpu_p(text: str) -> Machine:
    """The machine described by the output of ``lscpu -p``, with any selection of columns.

    Memory, distances and limits stay unknown. Raises ``UsageError`` when the text is not such output.
    """
    every = parse_rows(text)
    rows = [row for row in every if row.online is not False]
    if not rows:
        raise UsageError("there is no cpu in it; to write the output of `lscpu -p` to a file, run: lscpu -p > FILE")
    twice = {cpu for cpu, times in Counter(row.cpu for row in every).items() if times > 1}
    if twice:
        raise UsageError(f"cpus {format_cpu_list(twice)} have several rows; `lscpu -p` prints one row per cpu")
    anomalies = Anomalies()
    cores, l3 = _parts(_core_labels(rows, anomalies)), _parts({row.cpu: row.cache("l3") for row in rows})
    siblings = {cpu: tuple(core) for core in cores.values() for cpu in core}
    sharing = {cpu: tuple(group) for number, group in l3.items() if number is not None for cpu in group}
    online = tuple(sorted(row.cpu for row in rows))
    nodes: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if row.node is not None:
            nodes[row.node].append(row.cpu)
    raw = RawMachine(
        arch="unknown",
        vendor=None,
        model=None,
        isa=(),
        present=tuple(sorted(row.cpu for row in every)),
        online=online,
        isolated=(),
        cpus={row.cpu: RawCpu(siblings[row.cpu], row.socket, sharing.get(row.cpu)) for row in rows},
        nodes=tuple(Node(node, tuple(sorted(nodes[node])), None) for node in sorted(nodes)),
        kinds=KindHints(),
        cpuset=None,
        limits=Limits(),
    )
    return build_machine(raw, anomalies)


def _core_labels(rows: list[Row], anomalies: Anomalies) -> dict[int, Hashable]:
    """A label for the core of each cpu: CORE and the L2 cache, which siblings share, because CORE alone may repeat."""
    labels: dict[int, Hashable] = {}
    for row in rows:
        if row.core is not None:
            labels[row.cpu] = (row.socket, row.core, row.cache("l2"))
        else:
            l1d = row.cache("l1d")
            labels[row.cpu] = ("cpu", row.cpu) if l1d is None else ("l1d", l1d)
    uncertain = {row.cpu for row in rows if row.core is not None and row.cache("l2") is None}
    for cpus in _parts(labels).values():
        if len(cpus) > 1 and uncertain >= set(cpus):
            anomalies.add(
                "cpus treated as one core because of CORE alone, which repeats within a package on some machines "
                "(plain `lscpu -p`, which prints caches, is more reliable): {}",
                f"cpus {format_cpu_list(cpus)}",
            )
    return labels
