"""Every option has an effect: each field is read somewhere outside the definitions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.cli.commands import BENCH_COMMANDS, COMMANDS, CTL_COMMANDS
from launcher.cli.flags import Command

PACKAGE = Path(__file__).parents[2] / "launcher"
SOURCE = "\n".join(
    path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if "options" not in path.relative_to(PACKAGE).parts
)


@pytest.mark.parametrize(
    "command", [*COMMANDS, *CTL_COMMANDS, *BENCH_COMMANDS], ids=lambda command: command.function.__name__
)
def test_each_option_of_a_command_is_read(command: Command) -> None:
    unread = [
        option.flag
        for option in command.options
        # --config is read before options are built.
        if option.name != "config" and not re.search(rf"\.{option.path[-1]}\b", SOURCE)
    ]
    assert unread == []
