"""Everything decided for each instance, as one record: its plan, its binding and its command.

Shared by workers (``prepare.workers``) and by the programs of ``launch run``, which differ only in the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding
from launcher.core.planning.plan import InstancePlan, Plan
from launcher.core.planning.preload import Preload, choose_preload, wanted_libraries
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.report.topology_report import Command
from launcher.core.tuning.choose_classes import Choice
from launcher.core.tuning.simulation import CostBasis, Traffic
from launcher.host.process.preload import find_libraries
from launcher.host.process.probe_binding import choose_bindings, describe_bindings
from launcher.options import MachineOptions, RuntimeOptions


@dataclass(frozen=True, slots=True)
class PreparedInstance:
    """One instance: where it runs, how it is bound, and the command that starts it."""

    plan: InstancePlan
    binding: Binding
    command: Command


def renumbered(one: PreparedInstance, id: int) -> PreparedInstance:
    """The same instance with another id, which its worker needs for messages."""
    words = list(one.command.command)
    if "--instance" in words:
        words[words.index("--instance") + 1] = str(id)
    return replace(one, plan=replace(one.plan, id=id), command=replace(one.command, command=tuple(words)))


@dataclass(frozen=True, slots=True)
class ForecastInputs:
    """The inputs of predictions, and the choice of ``--classes auto``; None without that option."""

    traffic: Traffic
    basis: CostBasis
    choice: Choice | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All decisions. ``instances`` are those of ``plan``, in its order; ``model_info`` is None without a model,
    ``forecast`` if no server is planned. ``whole_machine`` is the machine with the cores that others have claimed; None
    if it was not planned for claims.
    """

    machine: Machine
    model_info: ModelInfo | None
    plan: Plan
    instances: tuple[PreparedInstance, ...]
    warnings: tuple[str, ...]
    forecast: ForecastInputs | None = None
    whole_machine: Machine | None = None

    @property
    def commands(self) -> tuple[Command, ...]:
        """The commands of all instances, in order, in the form used by reports."""
        return tuple(instance.command for instance in self.instances)


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What the command of an instance depends on besides its plan and binding. ``live``: the plan is for this machine;
    otherwise ``user_env`` is empty.
    """

    live: bool
    instances: int
    user_env: Mapping[str, str]
    preload: Preload


# Returns the command of an instance, and notes.
MakeCommand = Callable[[InstancePlan, Binding, CommandContext], tuple[Command, tuple[str, ...]]]


def prepare_instances(
    plan: Plan, machine: MachineOptions, runtime: RuntimeOptions, make_command: MakeCommand, *, live: bool
) -> tuple[tuple[PreparedInstance, ...], tuple[str, ...]]:
    """Bindings, preload and commands for every instance, with their warnings.

    If the plan is for this machine (``live``), bindings are probed and libraries are searched for. With
    ``machine.strict``, raises ``MachineError`` if a binding is less than planned; raises ``UsageError`` for a missing
    library.
    """
    bindings = _bindings_of(plan, machine, live)
    user_env: Mapping[str, str] = os.environ if live else {}
    context = CommandContext(live, len(plan.instances), user_env, _choose_preload(runtime, live, user_env))
    instances: list[PreparedInstance] = []
    notes: list[str] = []
    for instance, binding in zip(plan.instances, bindings, strict=True):
        command, said = make_command(instance, binding, context)
        instances.append(PreparedInstance(instance, binding, command))
        notes += said
    found = describe_bindings(plan, bindings) if live else ()
    return tuple(instances), (*found, *context.preload.notes, *notes)


def deduplicated(*warnings: str) -> tuple[str, ...]:
    """Each warning once, in order of first occurrence: many are identical for all instances."""
    return tuple(dict.fromkeys(warnings))


def _bindings_of(plan: Plan, machine: MachineOptions, live: bool) -> tuple[Binding, ...]:
    if live:
        return choose_bindings(plan, strict=machine.strict, probe_seconds=machine.probe_seconds)
    return tuple(
        Binding("cpus" if instance.memory == "local" else "bind", "numactl", "planned for another machine")
        for instance in plan.instances
    )


def _choose_preload(options: RuntimeOptions, live: bool, user_env: Mapping[str, str]) -> Preload:
    """Allocator and OpenMP runtime; they are searched for only on the machine itself."""
    facts = find_libraries(wanted_libraries(options.allocator, options.openmp), user_env) if live else None
    return choose_preload(options.allocator, options.openmp, facts, user_env)
