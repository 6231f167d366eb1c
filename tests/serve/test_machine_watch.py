"""What the watch of the machine reads for another plan."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.core.machine.changes import Capacity
from launcher.core.planning.footprint import instance_bytes
from launcher.options import MachineOptions, ModelOptions, ServeOptions
from launcher.prepare.workers import prepare_workers
from launcher.serve.machine_watch import MachineWatch
from launcher.serve.process_setup import FrontBinding

OPTIONS = ServeOptions(
    machine=MachineOptions(machine_file=Path("c5.metal"), instances=2),
    model=ModelOptions(model="random:tiny", backend="fake"),
)


def test_another_plan_may_use_the_memory_of_the_instances_that_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_workers(OPTIONS, model_needed=True)
    assert prepared.model_info is not None
    nodes = tuple(replace(node, free_bytes=0) for node in prepared.machine.nodes)
    full = replace(prepared.machine, nodes=nodes, free_bytes=0)
    monkeypatch.setattr("launcher.serve.machine_watch.load_machine", lambda _: full)
    watch: Any = MachineWatch.__new__(MachineWatch)
    watch._engine = SimpleNamespace(prepared=prepared, configuration=SimpleNamespace(options=OPTIONS))
    watch._actions, watch._front, watch._limit = SimpleNamespace(), FrontBinding(None), None
    watch._reader = SimpleNamespace(possible=None)
    watch._thread = None
    asyncio.run(watch._read_machine(Capacity(())))
    need = instance_bytes(prepared.model_info)
    assert [node.free_bytes for node in watch._actions.machine.nodes] == [need, need]
