"""Builds the commands that an export passes to another supervisor: a user's program, or servers of ours.

Separate from printing, because the command line of a server is derived from the options of this call: what a user has
tried with ``launch`` is what the supervisor starts.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.core.planning.program_placeholders import fill, values_of
from launcher.core.report.export import ServerFacts, export_plan, export_server
from launcher.core.report.topology_report import Command
from launcher.errors import UsageError
from launcher.options import ReportOptions, ServeOptions
from launcher.options.definitions import PLAN
from launcher.options.option import Option, options_of
from launcher.options.values import to_flat
from launcher.prepare.machine import is_this_machine
from launcher.prepare.prepared_instances import Prepared, PreparedInstance
from launcher.prepare.workers import OWN_ENV

# The machine is the one that the export runs on; the address and the model are always given.
_NOT_PASSED = frozenset(("machine", "sysroot", "host", "port", "model"))
# What each server of an instance decides by itself: it sees only the cores that its supervisor binds it to.
_OF_THE_PLAN = frozenset(option.name for option in options_of(ServeOptions) if option.declared.group == PLAN)
# In containers, the address of every interface: only published ports can be reached.
ANY_ADDRESS = "0.0.0.0"


def export_text(options: ServeOptions, wanted: ReportOptions, prepared: Prepared) -> str:
    """The export that ``wanted`` asks for. Raises ``UsageError`` for a program that should be a server."""
    assert wanted.export is not None, "called for exports"
    if options.front.uds is not None and not wanted.program:
        _check_uds(options.front.uds, wanted)
    if wanted.export_mode == "server":
        if wanted.program:
            raise UsageError(
                f"--export-mode server exports `launch` itself, but the program {wanted.program[0]!r} was given; "
                "omit it, or use --export-mode instances to start it once per instance"
            )
        command = Command(_server_command(options, wanted, prepared), {})
        return export_server(prepared.plan, command, _facts(options, options.front.port), wanted.export)
    if wanted.program:
        commands = [_program(wanted, one, prepared, options) for one in prepared.instances]
        return export_plan(prepared.plan, commands, wanted.export)
    ports = [options.front.port + one.plan.id for one in prepared.instances]
    servers = [_facts(options, port) for port in ports]
    commands = [
        Command(_instance_command(options, wanted, port), _env(one))
        for one, port in zip(prepared.instances, ports, strict=True)
    ]
    return export_plan(prepared.plan, commands, wanted.export, servers=servers)


def _check_uds(uds: Path, wanted: ReportOptions) -> None:
    """Raise ``UsageError`` if servers cannot listen on this Unix socket."""
    if wanted.export_mode == "instances":
        raise UsageError(f"--uds {str(uds)!r}: is one socket, but each instance is a server; add --export-mode server")
    if wanted.export == "compose":
        raise UsageError(f"--uds {str(uds)!r}: would be inside the container; omit it: the port is published")


def _program(wanted: ReportOptions, one: PreparedInstance, prepared: Prepared, options: ServeOptions) -> Command:
    words = fill(wanted.program, values_of(one.plan, len(prepared.instances)))
    if wanted.export == "systemd" and is_this_machine(options.machine):
        words = (shutil.which(words[0]) or words[0], *words[1:])  # systemd searches only a few directories
    return Command(words, _env(one))


def _env(one: PreparedInstance) -> dict[str, str]:
    return {name: value for name, value in one.command.env.items() if name not in OWN_ENV}


def _instance_command(options: ServeOptions, wanted: ReportOptions, port: int) -> tuple[str, ...]:
    """A server of one instance, which uses the cores that its supervisor binds it to."""
    return (
        *_launch(options, wanted), "--instances", "1", *_address(options, wanted, port),
        *_flags(options, without=_OF_THE_PLAN),
    )  # fmt: skip


def _server_command(options: ServeOptions, wanted: ReportOptions, prepared: Prepared) -> tuple[str, ...]:
    """A server that starts the instances of the plan itself."""
    machine, count = options.machine, len(prepared.instances)
    automatic = machine.instances is None and machine.classes is None and machine.cores_per_instance is None
    return (
        *_launch(options, wanted), *(("--instances", str(count)) if automatic else ()),
        *_address(options, wanted, options.front.port), *_flags(options, without=frozenset()),
    )  # fmt: skip


def _launch(options: ServeOptions, wanted: ReportOptions) -> tuple[str, ...]:
    """The name of this program for the supervisor: on this machine its path, because a supervisor has another PATH."""
    if wanted.export == "compose":
        return ("launch",)
    if not is_this_machine(options.machine):
        return ("/usr/local/bin/launch",) if wanted.export == "systemd" else ("launch",)
    beside = Path(sys.executable).parent / "launch"
    return (str(beside) if beside.exists() else shutil.which("launch") or "launch",)


def _address(options: ServeOptions, wanted: ReportOptions, port: int) -> tuple[str, ...]:
    model, host = options.model.model, options.front.host
    if is_this_machine(options.machine) and Path(model).is_dir():
        model = str(Path(model).resolve())
    if wanted.export == "compose":
        host = ANY_ADDRESS
    given = host != to_flat(ServeOptions())["host"]
    return ("--model", model, *(("--host", host) if given else ()), "--port", str(port))


def _flags(options: ServeOptions, *, without: frozenset[str]) -> Iterator[str]:
    """All options that differ from their defaults, as flags."""
    defaults, values = to_flat(ServeOptions()), to_flat(options)
    for option in options_of(ServeOptions):
        value = values[option.name]
        if value != defaults[option.name] and option.name not in _NOT_PASSED | without:
            yield from _flag(option, value, here=is_this_machine(options.machine))


def _flag(option: Option, value: Any, *, here: bool) -> Iterator[str]:
    if option.kind is bool:
        yield option.flag if value else f"--no-{option.key}"
        return
    for one in value if option.many else (value,):
        yield option.flag
        # Supervisors start programs in another working directory.
        yield str(one.resolve() if isinstance(one, Path) and here else option.declared.none if one is None else one)


def _facts(options: ServeOptions, port: int) -> ServerFacts:
    supervise = options.supervise
    stop_seconds = options.front.drain_seconds + supervise.stop_seconds
    user = _own_account() if is_this_machine(options.machine) and os.getuid() != 0 else None
    return ServerFacts(port, supervise.start_seconds, stop_seconds, user, options.front.tls_cert is not None)


def _own_account() -> str:
    """The name of the account of this process, or its number if it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
