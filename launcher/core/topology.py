"""A machine as frozen facts, and what can be said of it without looking again.

``host.sysfs`` fills these values, the planner reads them. Unknown facts are ``None``, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.core.cpuset import format_cpu_list


@dataclass(frozen=True, slots=True)
class Core:
    """One physical core. ``cpus`` are its allowed cpus, lowest first; the first is the one that is used."""

    id: int
    cpus: tuple[int, ...]
    package: int | None
    node: int | None
    l3: int | None
    kind: str = "performance"


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node. ``cpus`` is the kernel's list, which on older kernels names offline cpus too.

    ``distances`` pairs node id and SLIT distance. ``free_bytes`` is as of the reading: unused pages and those that
    only cache files.
    """

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int | None
    distances: tuple[tuple[int, int], ...] = ()
    free_bytes: int | None = None

    def distance(self, other: int) -> int:
        """SLIT distance to another node; nodes the kernel does not relate count as far away (255)."""
        return dict(self.distances).get(other, 10 if other == self.id else 255)


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds this process on the machine. ``cpu_quota`` is in cpus (1.5 = 150 ms per 100 ms)."""

    cpu_quota: float | None = None
    memory_nodes: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    affinity: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """All that was read. ``cores`` are the usable ones only; ``warnings`` say what was odd while reading.

    ``memory_bytes`` and ``free_bytes`` are of the whole machine: what counts where it has no nodes.
    """

    arch: str
    vendor: str | None
    model: str | None
    isa: tuple[str, ...]
    present: tuple[int, ...]
    online: tuple[int, ...]
    allowed: tuple[int, ...]
    isolated: tuple[int, ...]
    cores: tuple[Core, ...]
    nodes: tuple[Node, ...]
    limits: Limits
    warnings: tuple[str, ...] = ()
    memory_bytes: int | None = None
    free_bytes: int | None = None

    def node(self, node_id: int) -> Node | None:
        """The node of that id, or None."""
        return next((node for node in self.nodes if node.id == node_id), None)

    def to_json(self) -> dict[str, Any]:
        """The ``machine`` object of the topology report, schema 1."""
        memory_nodes = self.limits.memory_nodes
        affinity = self.limits.affinity
        return {
            "arch": self.arch,
            "vendor": self.vendor,
            "model": self.model,
            "isa": list(self.isa),
            "cpus": {
                "present": format_cpu_list(self.present),
                "online": format_cpu_list(self.online),
                "allowed": format_cpu_list(self.allowed),
                "isolated": format_cpu_list(self.isolated),
            },
            "cores": [
                {
                    "id": core.id,
                    "cpus": list(core.cpus),
                    "package": core.package,
                    "node": core.node,
                    "l3": core.l3,
                    "kind": core.kind,
                }
                for core in self.cores
            ],
            "nodes": [
                {
                    "id": node.id,
                    "cpus": format_cpu_list(node.cpus),
                    "memory_bytes": node.memory_bytes,
                    "distances": {str(other): distance for other, distance in node.distances},
                }
                for node in self.nodes
            ],
            "limits": {
                "cpu_quota": self.limits.cpu_quota,
                "memory_nodes": None if memory_nodes is None else format_cpu_list(memory_nodes),
                "memory_bytes": self.limits.memory_bytes,
                "affinity": None if affinity is None else format_cpu_list(affinity),
            },
        }
