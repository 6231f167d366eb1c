"""Whether new instances fit into memory next to those that run, so that a change can start them first.

Separate from planning, which looks at a machine on which no instance runs yet. An estimate: the need of an instance is
that of the planner (`core.planning.footprint.instance_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Whether each of these groups of new instances fits next to ``running`` ones of the same model. Reads the machine
    again, for the memory that is free now; if it cannot be read, the answer is no."""
    each = instance_bytes(model_info)
    try:
        machine = load_machine(options.machine)
    except MachineError:
        return False
    if not all(fits_memory(machine, MemoryDemand([one.plan.nodes for one in group], each)) for group in groups):
        return False
    total = machine.limits.memory_bytes
    return total is None or (running + max(map(len, groups), default=0)) * each <= total
