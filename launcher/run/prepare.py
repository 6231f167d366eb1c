"""Plans the programs of ``launch run``: machine, plan, binding and preload as for workers, but another command.

``--dry-run`` prints the result, ``runner`` carries it out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial

from launcher.core.planning.binding import Binding, program_command
from launcher.core.planning.claims import Claim, refused, without_claimed
from launcher.core.planning.plan import InstancePlan, Plan, PlanRequest, make_plan
from launcher.core.planning.program_placeholders import fill, values_of
from launcher.core.planning.worker_env import program_env
from launcher.core.report.topology_report import Command
from launcher.errors import MachineError, UsageError
from launcher.host.process.spawn_program import BINDER
from launcher.options import MachineOptions, RunOptions
from launcher.prepare.machine import is_this_machine, load_machine, require_this_machine
from launcher.prepare.prepared_instances import CommandContext, Prepared, deduplicated, prepare_instances

# Nothing is known about paths on another machine.
BINDER_ELSEWHERE = ("python3", "-m", "launcher.host.process.exec_bound")


def prepare_run(options: RunOptions, *, live: bool, claims: Sequence[Claim] = ()) -> Prepared:
    """Read the machine and make the plan for cores without ``claims``. ``live``: the programs will be started, so
    another machine and programs that cannot be started are rejected. Raises any ``LauncherError``.
    """
    if live:
        require_this_machine(options.machine)
    whole = load_machine(options.machine)
    machine = without_claimed(whole, claims)
    try:
        plan = make_plan(machine, _request(options.machine))
    except MachineError as error:
        raise refused(error, whole, claims) from error
    make_command = partial(_program_command, options.program)
    here = is_this_machine(options.machine)
    instances, notes = prepare_instances(plan, options.machine, options.runtime, make_command, live=here)
    if live:
        _check_programs(options.program, plan)
    return Prepared(machine, None, plan, instances, deduplicated(*machine.warnings, *plan.warnings, *notes))


def _request(wanted: MachineOptions) -> PlanRequest:
    return PlanRequest(
        instances=wanted.instances,
        cores_per_instance=wanted.cores_per_instance,
        reserve_cores=wanted.reserve_cores,
        oversubscribe=wanted.oversubscribe,
        mix_kinds=wanted.mix_kinds,
    )


def _program_command(
    program: tuple[str, ...], instance: InstancePlan, binding: Binding, context: CommandContext
) -> tuple[Command, tuple[str, ...]]:
    words = fill(program, values_of(instance, context.instances))
    env, notes = program_env(instance, context.instances, context.user_env, context.preload)
    binder = BINDER if context.live else BINDER_ELSEWHERE
    return Command(program_command(instance, binding, words, binder), env), notes


def _check_programs(program: tuple[str, ...], plan: Plan) -> None:
    for instance in plan.instances:
        _check_program(program, instance, len(plan.instances))


def _check_program(program: tuple[str, ...], instance: InstancePlan, instances: int) -> None:
    (name,) = fill(program[:1], values_of(instance, instances))
    if shutil.which(name) is None:
        place = "no executable file at this path" if os.sep in name else "not found in PATH"
        raise UsageError(f"program {name}: {place}, so none of {instances} instances was started")
