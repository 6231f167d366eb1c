"""The command line: one module per command, with flags that are derived from the option dataclasses.

A command receives its options and calls one function; nothing is decided here. Exit codes: 0 success, 1 failure at run
time, 2 usage error, 3 the machine cannot satisfy the request. This module imports little, so that ``--version`` is
fast.
"""

from __future__ import annotations

import sys

from launcher.errors import LauncherError


def main() -> None:
    """Entry point of the ``launch`` command."""
    if sys.argv[1:2] == ["--version"]:
        from importlib.metadata import version

        print(f"launch {version('launcher')}")
        return
    from launcher.cli.commands import app

    try:
        app(standalone_mode=True)
    except LauncherError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
