"""From options to everything that is known before a process starts: machine, model card, plan, bindings, commands.

``launch topology`` and ``--dry-run`` print it, ``server`` carries it out; so that both say the same, both take it
from here. Nothing is started in here but the probes of the bindings.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.core.cost.length_histogram import Histogram
from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding, worker_command, worker_env
from launcher.core.planning.footprint import choose_dtype, instance_bytes, mixed_batches, warmup_shapes
from launcher.core.planning.length_classes import builtin_lengths, parse_classes
from launcher.core.planning.plan import InstancePlan, Plan, PlanRequest, make_plan
from launcher.core.planning.preload import Runtimes, choose_runtimes, wanted_libraries
from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo, RunDtype
from launcher.core.report.plan_report import Command
from launcher.core.scheduling.scheduler import SchedulerLimits
from launcher.core.tuning.choose_classes import Choice, choose_classes
from launcher.core.tuning.simulation import CostBasis, Traffic
from launcher.errors import LauncherError, UsageError
from launcher.host.files.length_histogram import read_histogram
from launcher.host.machine.machine_file import read_machine_file
from launcher.host.machine.sysfs import read_machine
from launcher.host.model.resolve import resolve
from launcher.host.process.preload import look_around
from launcher.host.process.probe import choose_bindings, describe_bindings
from launcher.options import FIFO_BATCH_ITEMS, MachineOptions, ModelOptions, RuntimeOptions, ServeOptions
from launcher.serve.costs import Subject, basis_of

HERE = Path("/")
AUTO = "auto"  # for --classes

# For workers beside what the plan sets: Python must not import from the folder in which `launch` was typed.
OWN_ENV = {"PYTHONSAFEPATH": "1"}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What predictions are made from, and what `--classes auto` chose; None without it."""

    traffic: Traffic
    basis: CostBasis
    choice: Choice | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All decisions. ``commands`` are in the order of ``plan.instances``; ``model_info`` is None without a model,
    ``outlook`` where no server is planned."""

    machine: Machine
    model_info: ModelInfo | None
    plan: Plan
    bindings: tuple[Binding, ...]
    commands: tuple[Command, ...]
    warnings: tuple[str, ...]
    outlook: Outlook | None = None


def prepare(options: ServeOptions, *, model_needed: bool, machine: Machine | None = None) -> Prepared:
    """Read the machine unless it is given, resolve the model and plan. Raises any ``LauncherError``.

    Without ``model_needed`` (reports) a model that is not there becomes a warning: limits and memory that depend on
    it stay unknown.
    """
    _check_backend(options.model)
    if model_needed and options.machine.lengths is not None and options.machine.classes != AUTO:
        raise UsageError(
            f"--lengths {options.machine.lengths} is for --classes auto, and for what reports predict; "
            "add --classes auto or --dry-run, or leave it away"
        )
    machine = machine or read(options.machine)
    model_info, warnings = _model_info(options, model_needed)
    traffic = traffic_of(options)
    basis = basis_of(None if model_info is None else subject_of(options, machine, model_info))
    request = _request(options, model_info)
    choice = choose_classes(machine, request, basis, traffic) if options.machine.classes == AUTO else None
    plan = make_plan(machine, replace(request, classes=choice.specs) if choice else request)
    live = is_here(options.machine)
    bindings = bindings_of(plan, options.machine.strict, live)
    python = sys.executable if live else "python3"
    user_env = os.environ if live else {}
    runtimes = decide_runtimes(options.runtime, live, user_env)
    commands, notes = _commands(plan, bindings, python, user_env, runtimes)
    if live:
        warnings += describe_bindings(plan, bindings)
    everything = (*machine.warnings, *plan.warnings, *warnings, *runtimes.notes, *notes)
    said = tuple(dict.fromkeys(everything))
    return Prepared(machine, model_info, plan, bindings, commands, said, Outlook(traffic, basis, choice))


def traffic_of(options: ServeOptions) -> Traffic:
    """The lengths to plan and predict for. Raises ``UsageError`` for a file that is no histogram."""
    path, tokens = options.machine.lengths, options.front.batch_tokens
    if path is not None:
        return Traffic(read_histogram(path), f"those of {path.name}", tokens)
    return Traffic(
        Histogram(tuple(builtin_lengths().items())), "the built-in mix (--lengths FILE gives others)", tokens
    )


def read(wanted: MachineOptions) -> Machine:
    """The machine to plan for: this one, or a recorded or described one. Raises ``UsageError``, ``MachineError``."""
    _check(wanted)
    if wanted.machine_file is not None:
        return read_machine_file(wanted.machine_file)
    return read_machine(wanted.sysroot)


def is_here(wanted: MachineOptions) -> bool:
    """Whether it is the machine that this runs on: only then may anything that is found out here be in the plan."""
    return wanted.machine_file is None and wanted.sysroot.resolve() == HERE


def refuse_elsewhere(wanted: MachineOptions) -> None:
    """Raises ``UsageError`` where a plan is for another machine, and can be shown but not carried out."""
    if not is_here(wanted):
        option, place = ("--machine", wanted.machine_file) if wanted.machine_file else ("--sysroot", wanted.sysroot)
        raise UsageError(
            f"{option} {place} is for a plan of another machine, and instances start on this one; "
            f"--dry-run or `launch topology` shows that plan, and without {option} this machine is served from"
        )


def _check(options: MachineOptions) -> None:
    if options.machine_file is not None and options.sysroot != HERE:
        raise UsageError(
            f"--machine {options.machine_file} and --sysroot {options.sysroot} each name a machine; one of them works"
        )
    if options.classes and (options.instances or options.cores_per_instance):
        raise UsageError(
            "--classes says how many instances there are and how large; leave --instances and --cores-per-instance away"
        )


def _check_backend(options: ModelOptions) -> None:
    seconds = options.fake_seconds_per_token
    if seconds is None:
        return
    if options.backend != "fake":
        raise UsageError(
            f"--fake-seconds-per-token {seconds:g} is for --backend fake, and the backend is {options.backend}; "
            "leave it away, or add --backend fake"
        )
    if not math.isfinite(seconds):
        raise UsageError(f"--fake-seconds-per-token {seconds}: a number of seconds, such as 0.0001, is what works")


def _model_info(options: ServeOptions, needed: bool) -> tuple[ModelInfo | None, tuple[str, ...]]:
    try:
        model_info = resolve(options.model, download=needed)
        return model_info, model_info.notes
    except LauncherError as error:
        if needed:
            raise
        return None, (f"The plan was made without the model, so its limits are not in it: {error}",)


def _request(options: ServeOptions, model_info: ModelInfo | None) -> PlanRequest:
    wanted = options.machine
    return PlanRequest(
        instances=wanted.instances,
        cores_per_instance=wanted.cores_per_instance,
        classes=parse_classes(wanted.classes) if wanted.classes and wanted.classes != AUTO else (),
        reserve_cores=wanted.reserve_cores,
        oversubscribe=wanted.oversubscribe,
        mix_kinds=wanted.mix_kinds,
        length_limit=model_info.max_length if model_info else None,
        instance_bytes=instance_bytes(model_info) if model_info else None,
    )


def bindings_of(plan: Plan, strict: bool, live: bool) -> tuple[Binding, ...]:
    """How each instance is bound: as the probes say, or, for another machine, as planned. Raises ``MachineError``."""
    if live:
        return choose_bindings(plan, strict=strict)
    return tuple(
        Binding("cpus" if i.memory == "local" else "bind", "numactl", "planned for another machine")
        for i in plan.instances
    )


def decide_runtimes(options: RuntimeOptions, live: bool, user_env: Mapping[str, str]) -> Runtimes:
    """Allocator and OpenMP runtime; only on the machine itself are they looked for. Raises as ``choose_runtimes``."""
    surroundings = look_around(wanted_libraries(options.allocator, options.openmp), user_env) if live else None
    return choose_runtimes(options.allocator, options.openmp, surroundings, user_env)


def _commands(
    plan: Plan, bindings: tuple[Binding, ...], python: str, user_env: Mapping[str, str], runtimes: Runtimes
) -> tuple[tuple[Command, ...], tuple[str, ...]]:
    commands: list[Command] = []
    notes: list[str] = []
    for instance, binding in zip(plan.instances, bindings, strict=True):
        env, said = worker_env(instance, user_env, runtimes)
        commands.append(Command(worker_command(instance, binding, python), {**env, **OWN_ENV}))
        notes += said
    return tuple(commands), tuple(dict.fromkeys(notes))


def dtype_of(options: ServeOptions, machine: Machine) -> RunDtype:
    """The number format to run in on this machine."""
    return choose_dtype(options.model.dtype, machine.isa)


def subject_of(options: ServeOptions, machine: Machine, model_info: ModelInfo) -> Subject:
    """What costs depend on in all instances."""
    backend: str = options.model.backend
    if backend == "fake":
        backend = f"fake, {options.model.fake_seconds_per_token or 0.0:g} s a token"
    # Rows cost the same whoever shares them; what is packed is known only when the model is loaded.
    layout = "auto" if options.model.layout == "auto" else "padded"
    return Subject(machine, model_info, dtype_of(options, machine), backend, options.front.batch_tokens, layout)


def limits_of(options: ServeOptions) -> SchedulerLimits:
    """The bounds of the queue and of a batch."""
    first_come = FIFO_BATCH_ITEMS if options.model.layout == "fifo" else None
    return SchedulerLimits(options.front.queue_items, options.front.batch_tokens, first_come)


def setup_of(options: ServeOptions, machine: Machine, model_info: ModelInfo, instance: InstancePlan) -> Setup:
    """What the worker of an instance is told to load. Any length may reach it: classes help each other."""
    return Setup(
        model_info=model_info,
        dtype=dtype_of(options, machine),
        backend=options.model.backend,
        warmup=warmup_shapes(model_info.max_length, options.front.batch_tokens),
        mixed=mixed_batches(model_info.max_length, options.front.batch_tokens),
        trust_remote_code=options.model.trust_remote_code,
        pack=options.model.layout == "auto",
        fake_seconds_per_token=options.model.fake_seconds_per_token or 0.0,
    )
