"""The memory of a machine on which instances run: whether new ones fit next to them, so that a change can start those
first, and what is there for a plan that replaces them.

Separate from planning, which looks at a machine on which no instance runs yet. An estimate: the need of an instance is
that of the planner (`core.planning.footprint.instance_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.core.machine.topology import Machine
from launcher.core.planning.footprint import instance_bytes
from launcher.core.planning.memory_check import MemoryDemand, fits_memory
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import MachineError
from launcher.options import ServeOptions
from launcher.prepare.machine import load_machine
from launcher.prepare.prepared_instances import PreparedInstance


def fits_beside(
    options: ServeOptions, model_info: ModelInfo, groups: Sequence[Sequence[PreparedInstance]], *, running: int
) -> bool:
    """`has_room_beside` on the machine as it is now; False if it cannot be read."""
    try:
        machine = load_machine(options.machine)
    except MachineError:
        return False
    return has_room_beside(machine, model_info, groups, running=running)


def has_room_beside(
    machine: Machine, model_info: ModelInfo, groups: Sequence[Sequence[PreparedInstance]], *, running: int
) -> bool:
    """Whether each of these groups of new instances, by itself, fits next to ``running`` ones of the same model.

    ``machine`` was read while these run, so that its free memory is what they leave.
    """
    each = instance_bytes(model_info)
    if not all(fits_memory(machine, MemoryDemand([one.plan.nodes for one in group], each)) for group in groups):
        return False
    total = machine.limits.memory_bytes
    return total is None or (running + max(map(len, groups), default=0)) * each <= total


def without_instances(machine: Machine, model_info: ModelInfo, running: Sequence[PreparedInstance]) -> Machine:
    """A machine that was read while these instances run, as it would be without them: what they need counts as free.
    Another plan for it replaces them, so it may use their memory."""
    each = instance_bytes(model_info)
    held: dict[int, int] = {}
    for one in running:
        for node in one.plan.nodes:
            held[node] = held.get(node, 0) + each // len(one.plan.nodes)
    nodes = tuple(
        replace(node, free_bytes=_freed(node.free_bytes, node.memory_bytes, held.get(node.id, 0)))
        for node in machine.nodes
    )
    whole = _freed(machine.free_bytes, machine.memory_bytes, each * len(running))
    return replace(machine, nodes=nodes, free_bytes=whole)


def _freed(free: int | None, total: int | None, held: int) -> int | None:
    if free is None:
        return None
    return free + held if total is None else min(total, free + held)
