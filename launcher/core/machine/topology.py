"""A machine as immutable facts: cores, nodes, memory and limits, and their JSON form.

``host.machine.sysfs`` fills these values and the planner reads them. Unknown facts are ``None``, never a guess. A
machine can be written as JSON and read elsewhere, so that a plan for it can be made on another machine. No file is
opened here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from launcher.core.machine.cpuset import MAX_ID, format_cpu_list, parse_cpu_list
from launcher.errors import UsageError

SCHEMA = 1
UNKNOWN_ARCH = "unknown"
FROM_A_REPORT = (
    "The machine comes from a topology report. The warnings of that report are omitted, because they also concern its "
    "plan; a file written by `launch topology --save` keeps the warnings about the machine."
)


@dataclass(frozen=True, slots=True)
class Core:
    """One physical core. ``cpus`` are its allowed cpus, lowest first; the plan uses the first one."""

    id: int
    cpus: tuple[int, ...]
    package: int | None
    node: int | None
    l3: int | None
    kind: str = "performance"


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node. ``cpus`` is the kernel's list, which on older kernels includes offline cpus.

    ``distances`` are pairs of node id and SLIT distance. ``free_bytes`` is the amount at the time of reading: unused
    pages and the page cache.
    """

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int | None
    distances: tuple[tuple[int, int], ...] = ()
    free_bytes: int | None = None

    def distance(self, other: int) -> int:
        """SLIT distance to another node; 255, the largest, if the kernel reports none."""
        return dict(self.distances).get(other, 10 if other == self.id else 255)


@dataclass(frozen=True, slots=True)
class Limits:
    """The resource limits of this process. ``cpu_quota`` is in cpus (1.5 = 150 ms of cpu time per 100 ms)."""

    cpu_quota: float | None = None
    memory_nodes: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    affinity: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as this process may use it. ``cores`` has the usable ones only; ``warnings`` name anomalies.

    ``memory_bytes`` and ``free_bytes`` are those of the whole machine, for use if it has no nodes.
    ``microarchitecture`` is archspec's name, such as ``zen4``.
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
    microarchitecture: str | None = None

    @property
    def title(self) -> str:
        """The processor in words: ``AMD EPYC 7763 64-Core Processor (x86_64, zen3)``."""
        kind = self.arch if self.microarchitecture in (None, self.arch) else f"{self.arch}, {self.microarchitecture}"
        return f"{self.model or self.vendor or 'Unknown processor'} ({kind})"

    def node(self, node_id: int) -> Node | None:
        """The node of that id, or None."""
        return next((node for node in self.nodes if node.id == node_id), None)

    def to_json(self) -> dict[str, Any]:
        """The ``machine`` object of the topology report, schema 1."""
        memory_nodes = self.limits.memory_nodes
        affinity = self.limits.affinity
        return {
            "arch": None if self.arch == UNKNOWN_ARCH else self.arch,
            "vendor": self.vendor,
            "model": self.model,
            "microarchitecture": self.microarchitecture,
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

    @classmethod
    def from_json(cls, data: object) -> Machine:
        """The machine of such an object. Raises ``UsageError`` that names what is missing, mistyped or inconsistent."""
        return _machine(_decoded(data, _MachineJson, "machine"))


def machine_to_json(machine: Machine) -> dict[str, Any]:
    """The contents of a machine file: ``machine`` and ``warnings`` of the topology report, without the plan.

    Free memory is omitted, because it changes all the time.
    """
    return {
        "schema": SCHEMA,
        "machine": machine.to_json(),
        "memory_bytes": machine.memory_bytes,
        "warnings": list(machine.warnings),
    }


def machine_from_json(data: object) -> Machine:
    """The machine of a machine file, a whole topology report, or its ``machine`` alone. Raises ``UsageError``."""
    if not isinstance(data, dict) or "machine" not in data:
        return Machine.from_json(data)
    if data.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"the machine file has schema {data['schema']!r}; this version reads schema {SCHEMA}")
    file = _decoded(data, _FileJson, "machine file")
    # The warnings of a report concern the machine or the plan, and cannot be told apart.
    warnings = (FROM_A_REPORT,) if "plan" in data and file.warnings else tuple(file.warnings)
    return replace(_machine(file.machine), memory_bytes=file.memory_bytes, warnings=warnings)


# Larger or negative ids are invalid, and a mask made from them could exhaust memory.
Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
Amount = Annotated[int, msgspec.Meta(ge=0)]


class _CpusJson(msgspec.Struct):
    present: str
    online: str
    allowed: str
    isolated: str


class _CoreJson(msgspec.Struct):
    id: Id
    cpus: list[Id]
    package: Amount | None
    node: Id | None
    l3: Amount | None
    kind: Literal["performance", "efficiency"] = "performance"


class _NodeJson(msgspec.Struct):
    id: Id
    cpus: str
    memory_bytes: Amount | None = None
    distances: dict[Id, Amount] = {}


class _LimitsJson(msgspec.Struct):
    cpu_quota: Annotated[float, msgspec.Meta(gt=0)] | None = None
    memory_nodes: str | None = None
    memory_bytes: Amount | None = None
    affinity: str | None = None


class _MachineJson(msgspec.Struct):
    arch: str | None
    vendor: str | None
    model: str | None
    isa: list[str]
    cpus: _CpusJson
    cores: list[_CoreJson]
    nodes: list[_NodeJson]
    limits: _LimitsJson
    microarchitecture: str | None = None


class _FileJson(msgspec.Struct):
    machine: _MachineJson
    memory_bytes: Amount | None = None
    warnings: list[str] = []


Decoded = TypeVar("Decoded")


def _decoded(data: object, kind: type[Decoded], what: str) -> Decoded:
    try:
        return msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a {what} as `launch topology --json` prints it: {error}") from error


def _machine(data: _MachineJson) -> Machine:
    limits = data.limits
    machine = Machine(
        arch=data.arch or UNKNOWN_ARCH,
        vendor=data.vendor,
        model=data.model,
        isa=tuple(data.isa),
        present=_cpus(data.cpus.present),
        online=_cpus(data.cpus.online),
        allowed=_cpus(data.cpus.allowed),
        isolated=_cpus(data.cpus.isolated),
        cores=tuple(
            Core(core.id, tuple(core.cpus), core.package, core.node, core.l3, core.kind) for core in data.cores
        ),
        nodes=tuple(
            Node(node.id, _cpus(node.cpus), node.memory_bytes, tuple(node.distances.items())) for node in data.nodes
        ),
        limits=Limits(
            cpu_quota=limits.cpu_quota,
            memory_nodes=None if limits.memory_nodes is None else _cpus(limits.memory_nodes),
            memory_bytes=limits.memory_bytes,
            affinity=None if limits.affinity is None else _cpus(limits.affinity),
        ),
        microarchitecture=data.microarchitecture,
    )
    _check(machine)
    return machine


def _cpus(text: str) -> tuple[int, ...]:
    try:
        return parse_cpu_list(text)
    except ValueError as error:
        raise UsageError(f"the machine has an invalid cpu list: {error}") from error


def _check(machine: Machine) -> None:
    """Reject inconsistent data, which a file edited by hand may contain."""
    cpus = [cpu for core in machine.cores for cpu in core.cpus]
    twice = {cpu for cpu in cpus if cpus.count(cpu) > 1} if len(set(cpus)) < len(cpus) else set()
    if not machine.cores:
        raise UsageError("the machine has no cores")
    if not all(core.cpus for core in machine.cores):
        raise UsageError("every core must have at least one cpu")
    if twice:
        raise UsageError(f"cpus {format_cpu_list(twice)} are in more than one core")
    if len({core.id for core in machine.cores}) < len(machine.cores):
        raise UsageError("core ids must be unique")
    if not set(cpus) <= set(machine.allowed):
        extra = set(cpus) - set(machine.allowed)
        raise UsageError(f"cores have cpus {format_cpu_list(extra)}, which are not in cpus.allowed")
    if len({node.id for node in machine.nodes}) < len(machine.nodes):
        raise UsageError("node ids must be unique")
    lost = {core.node for core in machine.cores} - {None} - {node.id for node in machine.nodes}
    if lost:
        raise UsageError(f"cores refer to nodes {', '.join(sorted(map(str, lost)))}, which are missing")
