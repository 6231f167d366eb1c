"""Plans the workers of a model, for ``serve``, ``bench throughput``, the Python API and reports.

Reports and starts share this module, so a report shows exactly what would be started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from launcher.core.cost.length_histogram import Histogram
from launcher.core.machine.topology import Machine
from launcher.core.planning.binding import Binding, worker_command
from launcher.core.planning.claims import Claim, refused, without_claimed
from launcher.core.planning.footprint import dtype_notes, instance_bytes
from launcher.core.planning.length_classes import builtin_lengths, parse_classes
from launcher.core.planning.plan import InstancePlan, PlanRequest, make_plan
from launcher.core.planning.worker_env import worker_env
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.report.topology_report import Command
from launcher.core.tuning.choose_classes import choose_classes
from launcher.core.tuning.simulation import CostBasis, Traffic
from launcher.errors import MachineError, UsageError
from launcher.host.files.length_histogram import read_histogram
from launcher.options import ServeOptions
from launcher.prepare.cost_basis import basis_of, cost_key_base
from launcher.prepare.exposure import exposure_warnings
from launcher.prepare.machine import environment_of, is_this_machine, load_machine
from launcher.prepare.model import check_backend, check_worker_packages, load_model_info
from launcher.prepare.prepared_instances import (
    CommandContext,
    ForecastInputs,
    Prepared,
    deduplicated,
    prepare_instances,
)

AUTO = "auto"  # for --classes

# For workers, in addition to the environment from the plan: Python must not import from the current directory.
OWN_ENV = {"PYTHONSAFEPATH": "1"}


def prepare_workers(
    options: ServeOptions, *, model_needed: bool, machine: Machine | None = None, claims: Sequence[Claim] = ()
) -> Prepared:
    """Read the machine unless it is given, resolve the model and make the plan for cores without ``claims``. Raises any
    ``LauncherError``.

    Without ``model_needed`` (reports), a missing model becomes a warning, and the limits and memory that depend on it
    stay unknown.
    """
    check_backend(options.model)
    if model_needed and options.machine.lengths is not None and options.machine.classes != AUTO:
        raise UsageError(
            f"--lengths {options.machine.lengths} requires --classes auto or a report; add --classes auto or "
            "--dry-run, or omit it"
        )
    package_notes = check_worker_packages(options.model) if model_needed else ()
    whole = machine or load_machine(options.machine)
    machine = without_claimed(whole, claims)
    model_info, model_notes = load_model_info(options.model, needed=model_needed)
    try:
        forecast, request = _forecast_inputs(options, machine, model_info)
        plan = make_plan(machine, request)
    except MachineError as error:
        raise refused(error, whole, claims) from error
    live = is_this_machine(options.machine)
    instances, notes = prepare_instances(plan, options.machine, options.runtime, _worker_command, live=live)
    limited = dtype_notes(options.model.dtype, machine.isa, environment_of(options.machine))
    exposed = exposure_warnings(options.front, os.environ) if live else ()
    warnings = deduplicated(*machine.warnings, *plan.warnings, *model_notes, *package_notes, *limited, *notes, *exposed)
    return Prepared(machine, model_info, plan, instances, warnings, forecast, whole)


def _forecast_inputs(
    options: ServeOptions, machine: Machine, model_info: ModelInfo | None
) -> tuple[ForecastInputs, PlanRequest]:
    """The inputs of predictions, and the request to plan: with ``--classes auto`` it follows from the prediction."""
    traffic, request = _traffic_of(options), _request(options, model_info)
    subject = None if model_info is None else cost_key_base(options, machine, model_info)
    basis: CostBasis = basis_of(subject)
    if options.machine.classes != AUTO:
        return ForecastInputs(traffic, basis, None), request
    choice = choose_classes(machine, request, basis, traffic)
    return ForecastInputs(traffic, basis, choice), replace(request, classes=choice.specs)


def _traffic_of(options: ServeOptions) -> Traffic:
    """The lengths to plan and predict for. Raises ``UsageError`` for a file that is not a histogram."""
    path, tokens = options.machine.lengths, options.scheduling.batch_tokens
    if path is not None:
        return Traffic(read_histogram(path), f"from {path.name}", tokens)
    return Traffic(
        Histogram(tuple(builtin_lengths().items())), "the built-in workload (--lengths FILE sets another)", tokens
    )


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


def _worker_command(
    instance: InstancePlan, binding: Binding, context: CommandContext
) -> tuple[Command, tuple[str, ...]]:
    python = sys.executable if context.live else "python3"
    env, notes = worker_env(instance, context.user_env, context.preload)
    return Command(worker_command(instance, binding, python), {**env, **OWN_ENV}), notes
