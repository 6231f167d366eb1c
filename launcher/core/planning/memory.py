"""From which nodes the memory of an instance comes, and whether there is enough of it.

Separate from the cores' side: nodes with cores and nodes with memory are different sets (a node may lack either), and
Linux limits them separately. Only numbers of bytes and nodes in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.core.machine.topology import Machine
from launcher.core.planning.placement import Distances
from launcher.errors import MachineError

GIB = 1 << 30


def gib(amount: float) -> str:
    """``amount`` bytes for people: ``1.5 GiB``, below a GiB ``150 MiB``."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / (1 << 20):.0f} MiB"


class MemoryNodes:
    """Which nodes have memory that this process may use, and which of them is nearest to a node's cores."""

    def __init__(self, machine: Machine, distances: Distances) -> None:
        allowed = machine.limits.memory_nodes
        # An amount that is not known counts as some: most machines with nodes state it.
        self.with_memory = frozenset(node.id for node in machine.nodes if node.memory_bytes != 0)
        self.usable = tuple(
            sorted(node for node in self.with_memory if allowed is None or node in allowed),
        )
        self._nearest = _nearest(machine, distances, self.usable)

    def serving(self, nodes: Iterable[int | None]) -> tuple[int, ...]:
        """The nodes that give memory to cores in ``nodes``, ascending; empty where there are none to name."""
        own = {node for node in nodes if node is not None}
        return tuple(sorted({self._nearest.get(node, node) for node in own})) if self.usable else ()


def _nearest(machine: Machine, distances: Distances, usable: Sequence[int]) -> dict[int, int]:
    """For each node without usable memory the nearest with some.

    Among equally near ones those with cpus: the others are slower memory, or a GPU's. Of those the one that serves
    the fewest cpus, so that they share the load.
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
class Need:
    """The memory that instances want: ``nodes`` of each instance (empty: anywhere), ``each`` in bytes."""

    nodes: Sequence[tuple[int, ...]]
    each: int


def free_bytes(machine: Machine) -> dict[int, int]:
    """What each node has to give, where it is known: free memory, or else all of its memory."""
    found = {node.id: node.memory_bytes if node.free_bytes is None else node.free_bytes for node in machine.nodes}
    return {node: amount for node, amount in found.items() if amount is not None}


def check_memory(machine: Machine, need: Need) -> None:
    """Raises ``MachineError`` when the instances cannot fit: by node, by the machine, or by the process's limit."""
    count = len(need.nodes)
    asked = f"{_instances(count)} of {gib(need.each)} each"
    free = free_bytes(machine)
    for node, wanted in sorted(_by_node(need).items()):
        if node in free and wanted > free[node]:
            raise MachineError(
                f"{asked}: {gib(wanted)} of that would have to come from node {node}, which has "
                f"{gib(free[node])} free; {_what_fits(sum(there // need.each for there in free.values()))}"
            )
    for name, there in _totals(machine):
        if there is not None and need.each * count > there:
            raise MachineError(
                f"{asked} need {gib(need.each * count)}, but {name} {gib(there)}; {_what_fits(there // need.each)}"
            )


def _by_node(need: Need) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for nodes in need.nodes:
        for node in nodes:
            wanted[node] = wanted.get(node, 0) + need.each // len(nodes)
    return wanted


def _totals(machine: Machine) -> tuple[tuple[str, int | None], ...]:
    there = machine.memory_bytes if machine.free_bytes is None else machine.free_bytes
    return (
        ("the memory limit of this process is", machine.limits.memory_bytes),
        ("the machine has free", there),
    )


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"


def _what_fits(count: int) -> str:
    if count == 0:
        return "not one fits; take a smaller model, or bf16 instead of fp32, or free memory"
    return f"at most {_instances(count)} of that size fit: --instances {count}, or a smaller model"
