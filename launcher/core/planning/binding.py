"""Builds the command that binds a worker, or another program, to the cores and memory of its instance.

Separate because the report prints exactly what is started; both use these functions. ``host.process.probe_binding``
finds out which binding level the machine supports; nothing is tried or started here. The environment (``OMP_*``,
``MKL_*`` and so on) is built in ``core.planning.worker_env``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.plan import InstancePlan

Level = Literal["bind", "preferred", "cpus", "none"]
Tool = Literal["numactl", "syscalls"]


@dataclass(frozen=True, slots=True)
class Binding:
    """How one instance is bound. ``level``: memory strictly from its nodes (bind), memory preferably from them
    (preferred), cpus only (cpus), or nothing (none); ``tool``: what applies it; ``reason``: why this level, in
    words."""

    level: Level
    tool: Tool
    reason: str


def command_prefix(instance: InstancePlan, binding: Binding) -> tuple[str, ...]:
    """The command prefix that binds a program: ``numactl -C 0-11 -m 0``; empty if numactl is not used."""
    if binding.tool != "numactl" or binding.level == "none":
        return ()
    return ("numactl", "-C", format_cpu_list(instance.cpus), *_numactl_memory(instance, binding.level))


def _numactl_memory(instance: InstancePlan, level: Level) -> tuple[str, ...]:
    nodes = format_cpu_list(instance.nodes)
    if not nodes or level == "cpus":
        return ()
    if level == "preferred":
        # -p takes one node; -P takes several and needs numactl 2.0.15 and Linux 5.15.
        return ("-p", nodes) if len(instance.nodes) == 1 else ("-P", nodes)
    return ("-i", nodes) if instance.memory == "interleave" else ("-m", nodes)


def worker_command(instance: InstancePlan, binding: Binding, python: str) -> tuple[str, ...]:
    """The complete command of the instance's worker; without numactl it has the options by which the worker binds
    itself."""
    own = (python, "-m", "launcher.worker", "--instance", str(instance.id), "--threads", str(instance.threads))
    return (*command_prefix(instance, binding), *own, *_self_binding(instance, binding))


def program_command(
    instance: InstancePlan, binding: Binding, program: Sequence[str], binder: Sequence[str]
) -> tuple[str, ...]:
    """The complete command of another program; without numactl, ``binder`` precedes it and applies the binding."""
    own = _self_binding(instance, binding)
    before = (*binder, *own, "--") if own else command_prefix(instance, binding)
    return (*before, *program)


def _self_binding(instance: InstancePlan, binding: Binding) -> tuple[str, ...]:
    if binding.tool != "syscalls" or binding.level == "none":
        return ()
    cpus = ("--cpus", format_cpu_list(instance.cpus))
    if binding.level == "cpus" or not instance.nodes:
        return cpus
    policy = "preferred" if binding.level == "preferred" else instance.memory
    return (*cpus, "--memory", policy, "--nodes", format_cpu_list(instance.nodes))
