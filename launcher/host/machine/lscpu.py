"""Compares the machine with the output of ``lscpu``.

Separate because lscpu is another program: it may be missing, crash, hang or print blanks, and then there is nothing to
compare with. Its CORE column is not unique (numbers repeat within a package on many machines), so two cores that it
merges are reported only if the kernel numbers them differently.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping

from launcher.core.machine.anomalies import Anomalies
from launcher.core.machine.assemble import Cpus, RawMachine, group_cores
from launcher.core.machine.cpuset import format_cpu_list
from launcher.errors import UsageError
from launcher.host.machine.file_tree import Tree
from launcher.host.machine.lscpu_rows import Row, parse_rows, parts_of

COLUMNS = ("cpu", "core", "socket", "node", "online")
TIMEOUT = 1.0  # seconds after the files were read; the comparison must not delay the start


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
    _checkparts_of(
        "packages that differ between lscpu and topology/physical_package_id: {}",
        packages,
        {cpu: row.socket for cpu, row in known.items() if row.socket is not None},
        anomalies,
    )
    _checkparts_of(
        "nodes that differ between lscpu and node*/cpumap: {}",
        nodes,
        {cpu: row.node for cpu, row in known.items() if row.node is not None},
        anomalies,
    )
    _check_cores(known, group_cores(raw.cpus, raw.online, Anomalies()), core_id, anomalies)


def _checkparts_of(sentence: str, ours: Mapping[int, int], theirs: Mapping[int, int], anomalies: Anomalies) -> None:
    """Compare the grouping only: the numbers may differ."""
    common = ours.keys() & theirs.keys()
    their_parts = {frozenset(part) for part in parts_of({cpu: theirs[cpu] for cpu in common}).values()}
    for name, part in parts_of({cpu: ours[cpu] for cpu in common}).items():
        if frozenset(part) not in their_parts:
            anomalies.add(sentence, f"{name} of cpus {format_cpu_list(part)}")


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
    for merged in parts_of(labels).values():
        if len({group_of[cpu] for cpu in merged}) > 1 and len({core_id(cpu) for cpu in merged}) > 1:
            anomalies.add(
                "cpus that lscpu reports as one core, but topology/core_cpus and core_id do not: {}",
                f"cpus {format_cpu_list(merged)}",
            )
