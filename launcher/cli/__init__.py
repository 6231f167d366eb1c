"""The command line: one module per command, with flags that are derived from the option dataclasses.

A command receives its options and calls one function; nothing is decided here. Exit codes: 0 success, 1 failure at run
time, 2 usage error, 3 the machine cannot satisfy the request. This module imports little, so that ``--version`` is
fast.
"""

from __future__ import annotations

import sys

from launcher.cli import standard_streams
from launcher.errors import LauncherError, UsageError


def main() -> None:
    """Entry point of the ``launch`` command."""
    standard_streams.set_up()
    try:
        status = _run()
        standard_streams.flush_output()
    except LauncherError as error:
        status = error.exit_code
        _report(error)
    sys.exit(status)


def _run() -> str | int | None:
    """Carry out the command; returns the exit status. Raises ``LauncherError``."""
    if sys.argv[1:2] == ["--version"]:
        from importlib.metadata import version

        print(f"launch {version('launcher')}")
        return 0
    from launcher.cli.commands import app

    _check_option_names()
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return end.code
    return 0


def _check_option_names() -> None:
    """Raise ``UsageError`` for an option that is not printable: the parser shows unknown names as they are."""
    for word in sys.argv[1:]:
        if word == "--":
            return
        name = word.partition("=")[0]
        if name.startswith("-") and not name.isprintable():
            raise UsageError(f"{name}: there is no such option")


def _report(error: LauncherError) -> None:
    if isinstance(error, standard_streams.OutputError):
        standard_streams.discard_output()
        if error.broken:
            return
    from launcher.host.log import write_line  # not needed by --version

    write_line(f"launch: {error}")
