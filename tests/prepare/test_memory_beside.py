"""Whether new instances fit next to those that run, and what a plan that replaces them may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from launcher.core.machine.topology import Machine
from launcher.core.planning.footprint import instance_bytes
from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.resolve import resolve
from launcher.options import MachineOptions, ModelOptions, ServeOptions
from launcher.prepare.memory_beside import has_room_beside, without_instances
from launcher.prepare.prepared_instances import PreparedInstance
from launcher.prepare.workers import prepare_workers

OPTIONS = ServeOptions(
    machine=MachineOptions(machine_file=Path("c5.metal"), instances=2),
    model=ModelOptions(model="random:tiny", backend="fake"),
)
MODEL = resolve(OPTIONS.model)
PREPARED = prepare_workers(OPTIONS, model_needed=False)
GIB = 1 << 30


def with_free(each: int, limit: int | None = None) -> Machine:
    """The machine with this much free memory on each node, and a memory limit of the process."""
    machine = PREPARED.machine
    nodes = tuple(replace(node, memory_bytes=96 * GIB, free_bytes=each) for node in machine.nodes)
    limits = replace(machine.limits, memory_bytes=limit)
    return replace(machine, nodes=nodes, memory_bytes=192 * GIB, free_bytes=each * len(nodes), limits=limits)


def fits(machine: Machine, model_info: ModelInfo = MODEL) -> bool:
    return has_room_beside(machine, model_info, [PREPARED.instances], running=2)


def test_new_instances_fit_if_each_node_has_room_for_its_own() -> None:
    need = instance_bytes(MODEL)
    assert fits(with_free(need))
    assert not fits(with_free(need - 1))
    assert not fits(with_free(need), msgspec.structs.replace(MODEL, weight_bytes=GIB))


def test_old_and_new_instances_together_must_fit_into_the_limit_of_the_process() -> None:
    need = instance_bytes(MODEL)
    assert fits(with_free(48 * GIB, limit=4 * need))
    assert not fits(with_free(48 * GIB, limit=4 * need - 1))


def test_the_memory_of_instances_that_will_stop_counts_as_free() -> None:
    need = instance_bytes(MODEL)
    running: tuple[PreparedInstance, ...] = PREPARED.instances
    freed = without_instances(with_free(GIB), MODEL, running)
    assert [node.free_bytes for node in freed.nodes] == [GIB + need, GIB + need]
    assert freed.free_bytes == 2 * (GIB + need)
    full = without_instances(with_free(96 * GIB), MODEL, running)
    assert [node.free_bytes for node in full.nodes] == [96 * GIB, 96 * GIB], "at most what the node has"
