"""Prints a plan or writes it to files: report, JSON, SVG, the machine as a file, files of other supervisors.

Used by ``launch topology`` and ``launch … --dry-run``; nothing is started.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from launcher.core.machine.topology import Machine
from launcher.core.report.forecast import Forecast
from launcher.core.report.svg_map import draw_svg
from launcher.core.report.topology_report import (
    PlanReport,
    refused_json,
    refused_text,
    report_json,
    report_text,
)
from launcher.core.tuning.choose_classes import classes_of, specs_of
from launcher.core.tuning.simulation import Scenario, predict
from launcher.errors import MachineError, UsageError
from launcher.host.log import write_line
from launcher.host.machine.machine_file import lists_catalogue, write_machine_file
from launcher.options import ReportOptions, ServeOptions
from launcher.prepare.claims import prepare_report
from launcher.prepare.exported import export_text
from launcher.prepare.machine import load_machine
from launcher.prepare.prepared_instances import Prepared
from launcher.prepare.workers import prepare_workers


def show(options: ServeOptions, wanted: ReportOptions) -> None:
    """Print the report in the requested form. Raises any ``LauncherError``."""
    _check(wanted)
    if lists_catalogue(options.machine.machine_file):
        from launcher.core.machine.catalogue import catalogue_text  # imported here because other reports do not need it

        print(catalogue_text())
        return
    machine = load_machine(options.machine)
    if wanted.save is not None:  # before the plan: a machine can be saved even if the plan does not fit
        write_machine_file(wanted.save, machine)
        _say(f"wrote the machine ({len(machine.cores)} usable cores) to {wanted.save}")
    try:
        prepared = prepare_report(
            options.machine,
            lambda claims: prepare_workers(options, model_needed=False, machine=machine, claims=claims),
        )
    except MachineError as error:  # the machine shows why
        _print_machine(machine, str(error), as_json=wanted.json)
        raise
    if wanted.svg is not None:
        _write_svg(wanted.svg, prepared)
    if wanted.export is not None:
        print(export_text(options, wanted, prepared), end="")
        for warning in prepared.warnings:
            _say(f"warning: {warning}")
    elif wanted.json:
        print_json(prepared, forecast_of(prepared))
    else:
        print_report(prepared, forecast=forecast_of(prepared))


def forecast_of(prepared: Prepared) -> Forecast | None:
    """The predicted performance of the plan: from measured costs or, if classes were chosen, from estimates."""
    measure = "the first start of `launch` with these options"
    inputs = prepared.forecast
    if inputs is None:
        return None
    choice = inputs.choice
    if choice is not None:
        return Forecast(choice.predicted, measure, choice.equal, choice.why)
    if not inputs.basis.measured:
        return Forecast(None, measure)
    limit = prepared.model_info.max_length if prepared.model_info else None
    spans = classes_of(prepared.plan, inputs.traffic.histogram, limit)
    found = predict(specs_of(prepared.plan), Scenario(inputs.basis, inputs.traffic, limit), spans)
    return Forecast(found, measure)


def _check(wanted: ReportOptions) -> None:
    if wanted.program and wanted.export is None:
        raise UsageError(
            f"{wanted.program[0]!r}: a program requires --export; to start it on this machine, use `launch run -- "
            "PROGRAM`"
        )
    if wanted.export is None and wanted.export_mode != "instances":
        raise UsageError(f"--export-mode {wanted.export_mode} requires --export; add it, or omit --export-mode")
    if wanted.export is not None and wanted.json:
        raise UsageError("--export and --json exclude each other; use one of them")


def print_json(prepared: Prepared, forecast: Forecast | None = None) -> None:
    """Print the JSON document of schema 1, and nothing else."""
    document = report_json(_report_of(prepared, forecast))
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _print_machine(machine: Machine, refusal: str, *, as_json: bool) -> None:
    """Print the machine alone, because no plan for it satisfies the request."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(refused_json(machine, refusal)), indent=2).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(refused_text(machine, console.width, unicode=console.encoding.lower().startswith("utf")))


def print_report(prepared: Prepared, *, front: bool = True, forecast: Forecast | None = None) -> None:
    """Print the report as text, as wide as the terminal; ``front`` as in ``PlanReport``."""
    console = Console(highlight=False, soft_wrap=True)
    unicode = console.encoding.lower().startswith("utf")
    console.print(report_text(_report_of(prepared, forecast, front=front), console.width, unicode=unicode))


def _report_of(prepared: Prepared, forecast: Forecast | None, *, front: bool = True) -> PlanReport:
    return PlanReport(prepared.machine, prepared.plan, prepared.commands, prepared.warnings, forecast, front)


def _write_svg(file: Path, prepared: Prepared) -> None:
    try:
        file.write_text(draw_svg(prepared.machine, prepared.plan), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--svg {file}: cannot be written: {error.strerror or error}") from error
    _say(f"wrote the plan as SVG to {file}")


def _say(sentence: str) -> None:
    write_line(f"launch: {sentence}")
