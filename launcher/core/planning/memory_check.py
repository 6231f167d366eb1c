"""Chooses the nodes that an instance's memory comes from, and checks that there is enough memory.

Separate from core allocation because nodes with cores and nodes with memory are different sets (a node may lack
either), and Linux restricts them separately (cpuset ``cpus`` and ``mems``). This module handles bytes and nodes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Machine
from launcher.core.planning.placement import Distances
from launcher.errors import MachineError

GIB = 1 << 30


def gib(amount: float) -> str:
    """``amount`` bytes in readable form: ``1.5 GiB``; below one GiB, ``150 MiB``."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / (1 << 20):.0f} MiB"


class MemoryNodes:
    """The nodes whose memory this process may use, and which of them is nearest to the cores of each node."""

    def __init__(self, machine: Machine, distances: Distances) -> None:
        allowed = machine.limits.memory_nodes
        # A node with an unknown amount of memory is assumed to have some.
        self.with_memory = frozenset(node.id for node in machine.nodes if node.memory_bytes != 0)
        self.usable = tuple(
            sorted(node for node in self.with_memory if allowed is None or node in allowed),
        )
        self._nearest = _nearest(machine, distances, self.usable)

    def nodes_for(self, nodes: Iterable[int | None]) -> tuple[int, ...]:
        """The nodes that provide memory to cores in ``nodes``, ascending; empty if the machine has no usable ones."""
        own = {node for node in nodes if node is not None}
        return tuple(sorted({self._nearest.get(node, node) for node in own})) if self.usable else ()


def _nearest(machine: Machine, distances: Distances, usable: Sequence[int]) -> dict[int, int]:
    """Maps each node without usable memory to the nearest node that has some.

    At equal distance, nodes with cpus come first: a node without cpus is slower memory or belongs to a GPU. Among
    those, the node that serves the fewest cpus so far wins, which spreads the load.
    """
    served = {node.id: len(node.cpus) for node in machine.nodes}
    cpuless = {node.id for node in machine.nodes if not node.cpus}
    nearest: dict[int, int] = {}
    for node in sorted(machine.nodes, key=lambda node: node.id):
        if not usable or node.id in usable:
            continue
        near = [(distances.between(node.id, one), one in cpuless, served[one], one) for one in usable]
        nearest[node.id] = min(near)[-1]
        served[nearest[node.id]] += len(node.cpus)
    return nearest


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    """The memory that instances need: the ``nodes`` of each instance (empty: any node), and ``each`` in bytes."""

    nodes: Sequence[tuple[int, ...]]
    each: int


def free_bytes(machine: Machine) -> dict[int, int]:
    """The free memory of each node, or its total memory if the free amount is unknown; nodes with neither are
    omitted."""
    found = {node.id: node.memory_bytes if node.free_bytes is None else node.free_bytes for node in machine.nodes}
    return {node: amount for node, amount in found.items() if amount is not None}


def check_memory(machine: Machine, demand: MemoryDemand, fewer_that_fit: Callable[[int], int | None]) -> None:
    """Raise ``MachineError`` if the instances do not fit in a node, in the machine, or in the process's limit.

    ``fewer_that_fit`` returns the largest number of instances, up to one, that fits, for the message; None if their
    number cannot be changed.
    """
    shortage = _shortage(machine, demand)
    if shortage is None:
        return
    count = len(demand.nodes)
    raise MachineError(
        f"{_instances(count)} of {gib(demand.each)} each {shortage}; {_remedy(fewer_that_fit(count - 1))}"
    )


def fits_memory(machine: Machine, demand: MemoryDemand) -> bool:
    """Whether the instances fit in their nodes, in the machine, and in the process's limit."""
    return _shortage(machine, demand) is None


def _shortage(machine: Machine, demand: MemoryDemand) -> str | None:
    """What is missing, as the end of a sentence; None if the instances fit."""
    free = free_bytes(machine)
    for node, wanted in sorted(_by_node(demand).items()):
        if node in free and wanted > free[node]:
            return f"need {gib(wanted)} from node {node}, which has {gib(free[node])} free"
    needed = demand.each * len(demand.nodes)
    for what, there in _totals(machine):
        if there is not None and needed > there:
            return f"need {gib(needed)}, but {what.format(gib(there))}"
    return None


def _by_node(demand: MemoryDemand) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for nodes in demand.nodes:
        for node in nodes:
            wanted[node] = wanted.get(node, 0) + demand.each // len(nodes)
    return wanted


def _totals(machine: Machine) -> tuple[tuple[str, int | None], ...]:
    there = machine.memory_bytes if machine.free_bytes is None else machine.free_bytes
    return (
        ("the memory limit of this process is {}", machine.limits.memory_bytes),
        ("the machine has {} free", there),
    )


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"


def _remedy(count: int | None) -> str:
    if count is None:
        return "use fewer instances in --classes, or a smaller model"
    if count == 0:
        return "not even one fits; use a smaller model, use bf16 instead of fp32, or free memory"
    fits = f"at most {_instances(count)} of that size fit{'s' if count == 1 else ''}"
    return f"{fits}; use --instances {count}, or a smaller model"
