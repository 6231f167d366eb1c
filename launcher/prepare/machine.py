"""Loads the machine to plan for: this one, a recorded one, or one that a file describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launcher.core.machine.topology import Machine
from launcher.errors import UsageError
from launcher.host.machine.machine_file import read_machine_file
from launcher.host.machine.sysfs import read_machine
from launcher.options import MachineOptions

HERE = Path("/")


def load_machine(options: MachineOptions) -> Machine:
    """The machine to plan for. Raises ``UsageError`` for contradictory options, and ``MachineError``."""
    _check(options)
    if options.machine_file is not None:
        return read_machine_file(options.machine_file)
    return read_machine(options.sysroot, isolated=options.isolated)


def is_this_machine(options: MachineOptions) -> bool:
    """Whether the machine is the one that this process runs on. Only then may a plan contain facts about it."""
    return options.machine_file is None and options.sysroot.resolve() == HERE


def environment_of(options: MachineOptions) -> Mapping[str, str]:
    """The environment that workers on this machine inherit; empty for another machine, whose environment is unknown."""
    return os.environ if is_this_machine(options) else {}


def require_this_machine(options: MachineOptions) -> None:
    """Raises ``UsageError`` if the plan is for another machine: it can be shown but not started."""
    if is_this_machine(options):
        return
    option, place = ("--machine", options.machine_file) if options.machine_file else ("--sysroot", options.sysroot)
    raise UsageError(
        f"{option} {place} selects another machine, but instances start on this one; "
        f"use --dry-run or `launch topology` to show its plan, or omit {option}"
    )


def _check(options: MachineOptions) -> None:
    if options.machine_file is not None and options.sysroot != HERE:
        raise UsageError(
            f"--machine {options.machine_file} and --sysroot {options.sysroot} both select a machine; "
            "use only one of them"
        )
    if options.classes and (options.instances or options.cores_per_instance):
        raise UsageError(
            "--classes sets the number of instances and their sizes; omit --instances and --cores-per-instance"
        )
