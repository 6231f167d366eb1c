"""The machine that a plan is for: this one, a recorded one, or one that a file describes."""

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
    """The machine to plan for. Raises ``UsageError`` for options that contradict each other, ``MachineError``."""
    _check(options)
    if options.machine_file is not None:
        return read_machine_file(options.machine_file)
    return read_machine(options.sysroot)


def is_here(options: MachineOptions) -> bool:
    """Whether it is the machine that this process runs on. Only then may a plan contain facts about this process."""
    return options.machine_file is None and options.sysroot.resolve() == HERE


def environment_of(options: MachineOptions) -> Mapping[str, str]:
    """The environment that workers on this machine inherit; empty for another machine, whose environment is unknown."""
    return os.environ if is_here(options) else {}


def refuse_elsewhere(options: MachineOptions) -> None:
    """Raises ``UsageError`` if the plan is for another machine, and so can be shown but not started."""
    if is_here(options):
        return
    option, place = ("--machine", options.machine_file) if options.machine_file else ("--sysroot", options.sysroot)
    raise UsageError(
        f"{option} {place} is for a plan of another machine, and instances start on this one; "
        f"--dry-run or `launch topology` shows that plan; omit {option} to start instances here"
    )


def _check(options: MachineOptions) -> None:
    if options.machine_file is not None and options.sysroot != HERE:
        raise UsageError(
            f"--machine {options.machine_file} and --sysroot {options.sysroot} each name a machine; use one of them"
        )
    if options.classes and (options.instances or options.cores_per_instance):
        raise UsageError(
            "--classes sets the number of instances and their sizes; omit --instances and --cores-per-instance"
        )
