"""Reads the summary that ``lscpu`` prints without options, also as ``lscpu -J``.

Separate from the rows because a summary has counts and ranges only: it does not say which cpus share a core. That
follows from the ranges of the nodes, or from the usual numbering, and then a warning says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.cpuset import format_cpu_list, parse_cpu_list, parse_cpu_mask
from launcher.errors import UsageError
from launcher.host.machine.lscpu_rows import Row

_FIELD = re.compile(r"\s*([A-Za-z][^:]*?)\s*:\s*(.*?)\s*")
_NODE = re.compile(r"NUMA node(\d+) CPU\(s\)")
_INSTANCES = re.compile(r"\((\d+) instances?\)")
_MARKS = ("CPU(s)", "On-line CPU(s) list", "Thread(s) per core", "Architecture", "Socket(s)")
REMEDY = "use the output of `lscpu -p` instead, which has a row for each cpu"
# The siblings of a core have adjacent numbers there; elsewhere they usually are half of the cpus apart.
ADJACENT = ("ppc64", "ppc64le", "s390x", "s390", "sparc64")


def fields_of(text: str) -> dict[str, str]:
    """The lines ``Name: value`` of a summary; an empty dictionary if there are none of lscpu."""
    pairs = (match.groups() for line in text.splitlines() if (match := _FIELD.fullmatch(line)))
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found if any(mark in found for mark in _MARKS) else {}


def is_field(line: str) -> bool:
    """Whether a line is one of a summary rather than a row."""
    return _FIELD.fullmatch(line) is not None


def fields_of_json(entries: Any) -> dict[str, str]:
    """The same for the list ``lscpu`` of ``lscpu -J``, whose entries may have children. Raises ``UsageError``."""
    found: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("field"), str):
            raise UsageError("'lscpu' is not a list of fields, as `lscpu -J` prints it")
        found.setdefault(entry["field"].rstrip(": "), str(entry.get("data") or ""))
        for name, value in fields_of_json(entry.get("children")).items():
            found.setdefault(name, value)
    return found


def rows_of(fields: Mapping[str, str], anomalies: Anomalies) -> list[Row]:
    """A row for each online cpu. Raises ``UsageError`` if the summary does not determine the cores."""
    online = _online(fields)
    threads = _count(fields, "Thread(s) per core")
    if len(online) % threads:
        raise UsageError(
            f"the summary of lscpu has {len(online)} online cpus and {threads} threads per core, so some cores have "
            f"fewer threads than others, and it does not say which; {REMEDY}"
        )
    nodes = _nodes(fields, online)
    cores = sorted(core for cpus in nodes.values() for core in _cores(cpus, threads, fields, anomalies))
    sockets = _sockets(fields, cores, nodes)
    _check_count(fields, cores, max(sockets.values()) + 1)
    node_of = {cpu: node for node, cpus in nodes.items() for cpu in cpus if "NUMA node0 CPU(s)" in fields or node}
    l3 = _l3(fields, cores, sockets)
    return [
        Row(cpu, index, sockets[core[0]], node_of.get(cpu), True, l3.get(core[0], ()))
        for index, core in enumerate(cores)
        for cpu in core
    ]


def _online(fields: Mapping[str, str]) -> tuple[int, ...]:
    for name, parse in (("On-line CPU(s) list", parse_cpu_list), ("On-line CPU(s) mask", _mask)):
        if name in fields:
            try:
                found = parse(fields[name])
            except ValueError as error:
                raise UsageError(f"'{name}' of lscpu: {error}") from error
            if found:
                return found
    return tuple(range(_count(fields, "CPU(s)")))


def _mask(text: str) -> tuple[int, ...]:
    return parse_cpu_mask(text.lower().removeprefix("0x"))


def _count(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name)
    if text is None:
        raise UsageError(f"the summary of lscpu has no line '{name}'; {REMEDY}")
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1 << 16):
        raise UsageError(f"'{name}' of lscpu is {text!r}, not a number of at least 1; {REMEDY}")
    return int(text)


def _nodes(fields: Mapping[str, str], online: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """The online cpus of each node; a single node 0 if the summary has none."""
    found: dict[int, tuple[int, ...]] = {}
    for name, value in fields.items():
        if match := _NODE.fullmatch(name):
            try:
                cpus = tuple(cpu for cpu in parse_cpu_list(value) if cpu in set(online))
            except ValueError as error:
                raise UsageError(f"'{name}' of lscpu: {error}") from error
            if cpus:
                found[int(match.group(1))] = cpus
    missing = set(online) - {cpu for cpus in found.values() for cpu in cpus}
    if found and missing:
        raise UsageError(
            f"the summary of lscpu has cpus {format_cpu_list(missing)} in no node, and does not say where they are; "
            f"{REMEDY}"
        )
    return found or {0: online}


def _cores(
    cpus: tuple[int, ...], threads: int, fields: Mapping[str, str], anomalies: Anomalies
) -> Iterable[tuple[int, ...]]:
    """The cpus of a node as cores.

    If the kernel numbers the first threads of all cores before the second ones, the list of a node consists of equal
    parts that are a constant distance apart. A list with a constant step could also have the threads of a core side by
    side: then it covers only a part of the machine's numbers.
    """
    if threads == 1:
        return [(cpu,) for cpu in cpus]
    each, rest = divmod(len(cpus), threads)
    if rest:
        raise UsageError(
            f"the summary of lscpu does not say which of the cpus {format_cpu_list(cpus)} share a core; {REMEDY}"
        )
    parts = [cpus[start : start + each] for start in range(0, len(cpus), each)]
    apart = {tuple(cpu - part[0] for cpu in part) for part in parts}
    steps = {after - before for before, after in pairwise(cpus)}
    if len(apart) == 1 and len(steps) > 1:
        return list(zip(*parts, strict=True))
    online = _online(fields)
    covers_all = len(steps) == 1 and len(cpus) * min(steps) >= len(online)
    if covers_all and fields.get("Architecture", "") not in ADJACENT:
        chosen = list(zip(*parts, strict=True))
    else:
        chosen = [cpus[start : start + threads] for start in range(0, len(cpus), threads)]
    anomalies.add(
        "cpus treated as one core because of their usual numbers, since the summary of lscpu does not say which share "
        "a core (`lscpu -p` does): {}",
        f"cpus {format_cpu_list(chosen[0])}",
    )
    return chosen


def _sockets(
    fields: Mapping[str, str], cores: list[tuple[int, ...]], nodes: Mapping[int, tuple[int, ...]]
) -> dict[int, int]:
    """The socket of each core, by its first cpu: nodes, or else cores, in equal parts."""
    text = fields.get("Socket(s)", "-")
    count = int(text) if text.isascii() and text.isdigit() and 0 < int(text) <= len(cores) else 1
    if len(nodes) % count == 0:
        each = len(nodes) // count
        part_of = {
            cpu: index // each for index, cpus in enumerate(nodes[node] for node in sorted(nodes)) for cpu in cpus
        }
        return {core[0]: part_of[core[0]] for core in cores}
    return {core[0]: index * count // len(cores) for index, core in enumerate(cores)}


def _check_count(fields: Mapping[str, str], cores: list[tuple[int, ...]], sockets: int) -> None:
    text = fields.get("Core(s) per socket", "-")
    if text.isascii() and text.isdigit() and int(text) * sockets != len(cores):
        raise UsageError(
            f"the summary of lscpu has {text} cores per socket and {sockets} sockets, but its online cpus are "
            f"{len(cores)} cores: cores of several kinds, or offline cpus, and it does not say which; {REMEDY}"
        )


def _l3(
    fields: Mapping[str, str], cores: list[tuple[int, ...]], sockets: Mapping[int, int]
) -> dict[int, tuple[tuple[str, int], ...]]:
    """The L3 cache of each core, by its first cpu: the cores of the sockets in equal parts, if that is possible."""
    match = _INSTANCES.search(fields.get("L3 cache", ""))
    count = int(match.group(1)) if match else 0
    if not count or len(cores) % count:
        return {}
    each = len(cores) // count
    by_socket = sorted(cores, key=lambda core: (sockets[core[0]], core))
    return {core[0]: (("l3", index // each),) for index, core in enumerate(by_socket)}
