"""From options to everything that is known before a program starts: machine, plan, bindings, commands, environment.

``--dry-run`` prints it, ``runner`` carries it out. The same reading, planning, probing and preloading as for the
server; only what is started differs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from launcher.core.planning.binding import Binding, program_command, program_env
from launcher.core.planning.placeholders import fill, values_of
from launcher.core.planning.plan import InstancePlan, Plan, PlanRequest, make_plan
from launcher.core.planning.preload import Runtimes
from launcher.core.report.plan_report import Command
from launcher.errors import UsageError
from launcher.host.process.probe import describe_bindings
from launcher.host.process.programs import BINDER
from launcher.options import MachineOptions, RunOptions
from launcher.serve.prepare import Prepared, bindings_of, decide_runtimes, is_here, read, refuse_elsewhere

# Where the machine is another one, nothing is known of its paths.
BINDER_ELSEWHERE = ("python3", "-m", "launcher.host.process.exec_bound")


def prepare_run(options: RunOptions, *, live: bool) -> Prepared:
    """Read the machine and plan. ``live`` when the programs will be started: then another machine is refused, and
    what cannot be started is. Raises any ``LauncherError``."""
    if live:
        refuse_elsewhere(options.machine)
    here = is_here(options.machine)
    machine = read(options.machine)
    plan = make_plan(machine, _request(options.machine))
    bindings = bindings_of(plan, options.machine.strict, here)
    user_env: Mapping[str, str] = os.environ if here else {}
    runtimes = decide_runtimes(options.runtime, here, user_env)
    commands, notes = _commands(options.program, plan, bindings, runtimes, user_env, here)
    said = describe_bindings(plan, bindings) if here else ()
    if live:
        _check_programs(options.program, plan)
    everything = (*machine.warnings, *plan.warnings, *said, *runtimes.notes, *notes)
    return Prepared(machine, None, plan, bindings, commands, tuple(dict.fromkeys(everything)))


def _request(wanted: MachineOptions) -> PlanRequest:
    return PlanRequest(
        instances=wanted.instances,
        cores_per_instance=wanted.cores_per_instance,
        reserve_cores=wanted.reserve_cores,
        oversubscribe=wanted.oversubscribe,
        mix_kinds=wanted.mix_kinds,
    )


def _commands(
    program: tuple[str, ...],
    plan: Plan,
    bindings: tuple[Binding, ...],
    runtimes: Runtimes,
    user_env: Mapping[str, str],
    here: bool,
) -> tuple[tuple[Command, ...], tuple[str, ...]]:
    count = len(plan.instances)
    commands: list[Command] = []
    notes: list[str] = []
    for instance, binding in zip(plan.instances, bindings, strict=True):
        words = fill(program, values_of(instance, count))
        env, said = program_env(instance, count, user_env, runtimes)
        binder = BINDER if here else BINDER_ELSEWHERE
        commands.append(Command(program_command(instance, binding, words, binder), env))
        notes += said
    return tuple(commands), tuple(dict.fromkeys(notes))


def _check_programs(program: tuple[str, ...], plan: Plan) -> None:
    for instance in plan.instances:
        _check_program(program, instance, len(plan.instances))


def _check_program(program: tuple[str, ...], instance: InstancePlan, instances: int) -> None:
    (name,) = fill(program[:1], values_of(instance, instances))
    if shutil.which(name) is None:
        place = "no such file that may be executed" if os.sep in name else "it is in no folder of PATH"
        raise UsageError(f"launch run -- {name}: {place}, so none of {instances} instances was started")
