"""The command line: one module per command, each with flags that are made from the dataclasses of its options.

A command builds options and calls one function; nothing is decided here. Exit codes: 0 fine, 1 failed at run time,
2 usage, 3 the machine cannot do what was asked. This module imports little, so that ``--version`` is answered at once.
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
    from launcher.cli.app import app

    try:
        app(standalone_mode=True)
    except LauncherError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
