"""Commands of workers, for every level and both tools."""

from __future__ import annotations

import pytest

from launcher.core.planning.binding import Binding, Level, command_prefix, worker_command
from launcher.core.planning.plan import InstancePlan, MemoryPolicy


def instance(memory: MemoryPolicy = "bind", nodes: tuple[int, ...] = (1,), threads: int = 12) -> InstancePlan:
    cores = tuple(range(12, 12 + threads))
    return InstancePlan(3, cores, cores, threads, nodes, memory, None, "For a test.")


WORKER = ("python3", "-m", "launcher.worker", "--instance", "3", "--threads", "12")


@pytest.mark.parametrize(
    ("level", "memory", "nodes", "prefix"),
    [
        ("bind", "bind", (1,), "numactl -C 12-23 -m 1"),
        ("bind", "interleave", (0, 1), "numactl -C 12-23 -i 0-1"),
        ("bind", "local", (), "numactl -C 12-23"),
        ("preferred", "bind", (1,), "numactl -C 12-23 -p 1"),
        ("preferred", "interleave", (0, 2, 3), "numactl -C 12-23 -P 0,2-3"),
        ("preferred", "local", (), "numactl -C 12-23"),
        ("cpus", "bind", (1,), "numactl -C 12-23"),
        ("none", "bind", (1,), ""),
    ],
)
def test_numactl_gets_the_cpus_and_the_memory_policy_of_the_level(
    level: Level, memory: MemoryPolicy, nodes: tuple[int, ...], prefix: str
) -> None:
    one, binding = instance(memory, nodes), Binding(level, "numactl", "")
    assert command_prefix(one, binding) == tuple(prefix.split())
    assert worker_command(one, binding, "python3") == (*prefix.split(), *WORKER)


@pytest.mark.parametrize(
    ("level", "memory", "nodes", "own"),
    [
        ("bind", "bind", (1,), "--cpus 12-23 --memory bind --nodes 1"),
        ("bind", "interleave", (0, 1), "--cpus 12-23 --memory interleave --nodes 0-1"),
        ("bind", "local", (), "--cpus 12-23"),
        ("preferred", "interleave", (0, 1), "--cpus 12-23 --memory preferred --nodes 0-1"),
        ("cpus", "bind", (1,), "--cpus 12-23"),
        ("none", "bind", (1,), ""),
    ],
)
def test_without_numactl_the_worker_gets_options_to_bind_itself(
    level: Level, memory: MemoryPolicy, nodes: tuple[int, ...], own: str
) -> None:
    one, binding = instance(memory, nodes), Binding(level, "syscalls", "")
    assert command_prefix(one, binding) == ()
    assert worker_command(one, binding, "python3") == (*WORKER, *own.split())
