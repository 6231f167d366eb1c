"""Commands made from option dataclasses: one flag per option, help that fits a screen, and no early imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from launcher.cli.commands import app
from launcher.cli.flags import ROOTS
from launcher.options.option import options_of
from tests.cli.running import launch

COMMANDS = ("serve", "topology", "run", "doctor", "config", "ctl restart", "ctl plan", "ctl status",
            "bench load", "bench baseline", "bench echo", "bench throughput")  # fmt: skip
HELP_LINES = 22  # of a terminal with 24 lines


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_each_group_fits_on_a_screen(command: str) -> None:
    done = launch(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "<bool>" not in done.stdout
    assert f"Example: launch {'' if command == 'serve' else command}" in done.stdout
    size = 0
    for line in done.stdout.splitlines():
        assert len(line) <= 80, line
        size = 1 if line.startswith("╭") else size + 1
        assert not line.startswith("╰") or size <= HELP_LINES, f"{command}: a group of {size} lines"
        assert "…" not in line or "SPEC" in line, f"{command}: cut off: {line}"


@pytest.mark.parametrize("group", [(), ("bench",)])
def test_help_of_a_group_shows_flags_without_a_placeholder(group: tuple[str, ...]) -> None:
    done = launch(*group, "--help")
    assert "--help" in done.stdout
    assert "<bool>" not in done.stdout


def test_every_option_is_a_flag_of_its_command() -> None:
    group = typer.main.get_command(app)
    for root, name in zip(ROOTS, ("serve", "run", "doctor"), strict=True):
        flags = {flag for param in group.commands[name].params for flag in param.opts}  # type: ignore[attr-defined]
        for option in options_of(root):
            assert option.declared.positional or option.flag in flags, f"{name} lacks {option.flag}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "80.5"), "launch: --port 80.5: must be an integer from 0 to 65535"),
        (("--port", ""), "launch: --port : must be an integer from 0 to 65535"),
        (("--dtype", "fp8"), "launch: --dtype fp8: must be one of auto, bf16, fp32, int8"),
        (("--strict", "--no-strict"), "launch: --strict and --no-strict exclude each other; keep one of them"),
        (("run", "--classes", "auto", "--", "true"), "No such option: --classes"),
        (("run",), "launch: PROGRAM [ARGS]... is missing; see --help"),
        (("run", "--dry-run"), "launch: PROGRAM [ARGS]... is missing; see --help"),
        (("bench", "load", "--rounds", "0"), "launch: --rounds 0: must be an integer of at least 1"),
    ],
)
def test_bad_flags_are_refused(arguments: tuple[str, ...], message: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_can_turn_off_what_the_environment_turns_on() -> None:
    def strict(*arguments: str) -> object:
        done = launch("config", "--json", *arguments, env={"LAUNCH_STRICT": "true"})
        return next(each for each in json.loads(done.stdout) if each["option"] == "strict")

    assert strict() == {"option": "strict", "value": True, "source": "environment", "place": "LAUNCH_STRICT"}
    assert strict("--no-strict") == {"option": "strict", "value": False, "source": "flag", "place": "--strict"}


def test_bench_commands_with_options_of_their_own_read_only_flags() -> None:
    done = launch("bench", "echo", "--port", "70000", env={"LAUNCH_PORT": "tcp://10.0.0.1:80", "LAUNCH_X": "1"})
    assert done.returncode == 2
    assert done.stderr == "launch: --port 70000: must be an integer from 1 to 65535\n"


# -- what is imported ---------------------------------------------------------------------------------------------

SLOW = {
    "anyio",
    "asyncio",
    "huggingface_hub",
    "importlib.metadata",
    "numpy",
    "orjson",
    "prometheus_client",
    "pydantic",
    "safetensors",
    "ssl",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
    "uvloop",
    "launcher.bench.load",
    "launcher.core.diagnosis",
    "launcher.engine",
    "launcher.front",
    "launcher.worker",
}

IMPORTED = """
import sys
sys.argv = ["launch", *sys.argv[1:]]
from launcher.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(sys.modules), file=sys.stderr)
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """The modules that a command imports on a machine on which nothing was measured yet."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
    )
    return set(done.stderr.splitlines()[-1].split())


def test_the_version_needs_no_command_line_parser(tmp_path: Path) -> None:
    assert (
        imported(tmp_path, "--version") & {"typer", "click", "rich", "msgspec", "psutil", "launcher.options"} == set()
    )


def test_a_report_imports_nothing_that_only_a_server_needs(tmp_path: Path) -> None:
    assert imported(tmp_path, "topology") & SLOW == set()
    assert imported(tmp_path, "topology", "--json", "--instances", "1") & SLOW == set()
