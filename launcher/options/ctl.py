"""The options of the commands under ``launch ctl``: which server, and what to change. All are flags only: variables and
files configure the server, not a change of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launcher.options.choices import ChangeOrder
from launcher.options.definitions import PLAN, FormatOptions, FrontOptions, MachineOptions
from launcher.options.option import option, part

SERVER = "Server"


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """The server to connect to: the Unix socket of the one on ``port``, ``socket``, or ``url`` with an admin key."""

    command_line_only: ClassVar[bool] = True

    port: int = option(
        FrontOptions().port,
        "Port of a server on this machine, whose admin socket is at its default path.",
        group=SERVER,
        minimum=1,
        maximum=65535,
        metavar="PORT",
    )
    socket: Path | None = option(None, "Admin socket of the server (its --admin-socket).", group=SERVER, metavar="PATH")
    url: str | None = option(None, "Connect over HTTP, with the admin key.", group=SERVER, metavar="URL")
    admin_key_file: Path | None = option(
        None, "File with the admin key for --url (or set LAUNCH_ADMIN_KEY).", group=SERVER, metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class CtlOptions:
    """The options of all commands."""

    command_line_only: ClassVar[bool] = True

    connect: ConnectOptions = part(ConnectOptions())
    format: FormatOptions = part(FormatOptions())


@dataclass(frozen=True, slots=True)
class PlanChangeOptions:
    """The options of the new plan; those that are not given stay as they are."""

    command_line_only: ClassVar[bool] = True

    machine: MachineOptions = part(
        MachineOptions(),
        only=("instances", "cores_per_instance", "classes", "reserve_cores", "oversubscribe", "mix_kinds"),
        flags_only=True,
    )
    order: ChangeOrder = option(
        "auto", "Start new instances beside the old ones, if memory allows (auto), or in place of them.", group=PLAN
    )
