"""Builds a machine from the output of ``lscpu`` alone: ``-p``, ``-e``, ``-J``, or the summary.

Separate from the formats because the rules are the same for all of them: which cpus share a core, which are offline,
and which cores are of another kind. Memory, distances and limits stay unknown.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.assemble import KindHints, RawCpu, RawMachine, build_machine
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import UNKNOWN_ARCH, Limits, Machine, Node
from launcher.errors import UsageError
from launcher.host.machine import lscpu_summary
from launcher.host.machine.lscpu_rows import Row, is_table_header, parse_json_rows, parse_rows, parse_table, parts_of
from launcher.host.machine.processor import Processor, processor_of

_DATA = re.compile(r"\s*[\"']?\d+[\"']?\s*,")
NO_CPU = "there is no cpu in it; to write the output of `lscpu -p` to a file, run: lscpu -p > FILE"


def machine_from_lscpu(text: str) -> Machine:
    """The machine that the output of ``lscpu -p``, ``lscpu -e`` or plain ``lscpu`` describes, with any columns.

    Raises ``UsageError`` when the text is not such output, or lacks what determines the cores.
    """
    lines = text.splitlines()
    header = next((line for line in lines if is_table_header(line)), None)
    summary = lscpu_summary.fields_of(text)
    anomalies = Anomalies()
    if any(_DATA.match(line) for line in lines):
        rows = parse_rows("\n".join(line for line in lines if not (summary and lscpu_summary.is_field(line))))
    elif header is not None:
        after = lines[lines.index(header) + 1 :]
        rows = parse_table(header, (line for line in after if line.strip() and not lscpu_summary.is_field(line)))
    elif summary:
        return _machine(lscpu_summary.rows_of(summary, anomalies), summary, anomalies, from_summary=True)
    else:
        rows = parse_rows(text)
    return _machine(rows, summary, anomalies)


def machine_from_lscpu_json(document: Mapping[str, Any]) -> Machine | None:
    """The machine of ``lscpu -J`` or ``lscpu -e -J``; None if the document is neither. Raises ``UsageError``."""
    anomalies = Anomalies()
    if "cpus" in document and "schema" not in document:
        return _machine(parse_json_rows(document["cpus"]), {}, anomalies)
    if "lscpu" in document:
        fields = lscpu_summary.fields_of_json(document["lscpu"])
        return _machine(lscpu_summary.rows_of(fields, anomalies), fields, anomalies, from_summary=True)
    return None


def _machine(
    every: list[Row], fields: Mapping[str, str], anomalies: Anomalies, *, from_summary: bool = False
) -> Machine:
    rows = [row for row in every if _is_online(row, every)]
    if not rows:
        raise UsageError(NO_CPU)
    twice = {cpu for cpu, times in Counter(row.cpu for row in every).items() if times > 1}
    if twice:
        raise UsageError(f"cpus {format_cpu_list(twice)} have several rows; `lscpu` prints one row per cpu")
    labels = _core_labels(rows, None if from_summary else anomalies)
    cores, l3 = parts_of(labels), parts_of({row.cpu: row.cache("l3") for row in rows})
    siblings = {cpu: tuple(core) for core in cores.values() for cpu in core}
    sharing = {cpu: tuple(group) for number, group in l3.items() if number is not None for cpu in group}
    nodes: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if row.node is not None:
            nodes[row.node].append(row.cpu)
    processor = _processor(fields)
    raw = RawMachine(
        arch=processor.arch,
        vendor=processor.vendor,
        model=processor.model,
        isa=processor.isa,
        present=tuple(sorted(row.cpu for row in every)),
        online=tuple(sorted(row.cpu for row in rows)),
        isolated=(),
        cpus={row.cpu: RawCpu(siblings[row.cpu], row.socket, sharing.get(row.cpu)) for row in rows},
        nodes=tuple(Node(node, tuple(sorted(nodes[node])), None) for node in sorted(nodes)),
        kinds=_kinds(rows, list(cores.values())),
        cpuset=None,
        limits=Limits(),
        microarchitecture=processor.microarchitecture,
    )
    return build_machine(raw, anomalies)


def _is_online(row: Row, every: Iterable[Row]) -> bool:
    """Whether a cpu is online. Without the column ONLINE, a row without core, socket and caches is an offline cpu's,
    if other rows have them: `lscpu -a -p` prints it so."""
    if row.online is not None:
        return row.online
    blank = row.core is None and row.socket is None and not row.caches
    return not (blank and any(one.core is not None or one.socket is not None or one.caches for one in every))


def _processor(fields: Mapping[str, str]) -> Processor:
    return (
        processor_of(
            fields.get("Architecture", UNKNOWN_ARCH),
            fields.get("Vendor ID") or None,
            fields.get("Model name") or None,
            fields.get("Flags", "").split(),
        )
        if fields
        else Processor(UNKNOWN_ARCH, None, None, ())
    )


def _core_labels(rows: list[Row], anomalies: Anomalies | None) -> dict[int, Hashable]:
    """A label for the core of each cpu: CORE and the L2 cache, which siblings share, because CORE alone may repeat.

    ``anomalies`` is None if CORE is known to be unique.
    """
    labels: dict[int, Hashable] = {}
    for row in rows:
        if row.core is not None:
            labels[row.cpu] = (row.socket, row.core, row.cache("l2"))
        else:
            l1d = row.cache("l1d")
            labels[row.cpu] = ("cpu", row.cpu) if l1d is None else ("l1d", l1d)
    uncertain = {row.cpu for row in rows if row.core is not None and row.cache("l2") is None}
    if anomalies is None:
        return labels
    for cpus in parts_of(labels).values():
        if len(cpus) > 1 and uncertain >= set(cpus):
            anomalies.add(
                "cpus treated as one core because of CORE alone, which repeats within a package on some machines "
                "(plain `lscpu -p`, which prints caches, is more reliable): {}",
                f"cpus {format_cpu_list(cpus)}",
            )
    return labels


def _kinds(rows: list[Row], cores: list[list[int]]) -> KindHints:
    """What the rows say about kinds of cores: the highest clock, and on Intel's hybrid processors the threads of a core
    and the L2 caches."""
    by_clock = {row.cpu: round(row.max_mhz * 1000) for row in rows if row.max_mhz is not None}
    if len(by_clock) == len(rows) and len(set(by_clock.values())) > 1:
        return KindHints(max_khz=by_clock)
    slow = _sharing_l2(rows, cores) or _single_threads_at_the_end(cores)
    return KindHints(efficiency_cpus=tuple(sorted(slow))) if slow else KindHints()


def _sharing_l2(rows: list[Row], cores: list[list[int]]) -> set[int]:
    """The cpus of cores with one thread that share their L2 cache, where others have one of their own: Intel's
    efficiency cores come in modules of two or four with one L2 cache."""
    l2 = {row.cpu: row.cache("l2") for row in rows}
    if any(number is None for number in l2.values()):
        return set()
    users = Counter(l2[core[0]] for core in cores)
    own = [core for core in cores if users[l2[core[0]]] == 1]
    shared = [core for core in cores if users[l2[core[0]]] > 1]
    has_smt = any(len(core) > 1 for core in own)
    plausible = own and shared and all(len(core) == 1 for core in shared)
    # An own cache because all neighbours are offline does not make a core faster.
    several = has_smt or len(own) > 1
    return {cpu for core in shared for cpu in core} if plausible and several else set()


def _single_threads_at_the_end(cores: list[list[int]]) -> set[int]:
    """The cpus of cores with one thread, if they are numbered after all cores with two, without gaps: Intel's hybrid
    processors. Offline siblings leave gaps, or come first."""
    double = sorted(cpu for core in cores if len(core) == 2 for cpu in core)
    single = sorted(cpu for core in cores if len(core) == 1 for cpu in core)
    if len(single) < 2 or not double or len(double) + len(single) != sum(map(len, cores)):
        return set()
    in_order = [*double, *single]
    return set(single) if in_order == list(range(in_order[0], in_order[0] + len(in_order))) else set()
