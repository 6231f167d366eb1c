"""The command line: all commands, and the help and options that they share.

``serve`` is the default command: ``launch --instances 4`` is ``launch serve --instances 4``.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.cli import bench, config, ctl, doctor, ps, run, serve, stop, topology
from launcher.cli.flags import Command, add_command, keep_text, without_metavars
from launcher.options.definitions import ACCESS, ADMINISTRATION, CONNECTIONS, HTTP, LIMITS, SUPERVISION

DEFAULT_COMMAND = "serve"


class CommandGroup(TyperGroup):
    """A group of commands, whose help shows flags as that of the commands does."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See the base class."""
        return without_metavars(super().get_params(ctx))


class DefaultCommandGroup(CommandGroup):
    """Inserts ``serve`` if the first word is one of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {"-h", "--help", "--version", "--install-completion", "--show-completion"}
        if not args or (args[0].startswith("-") and args[0].split("=")[0] not in own):
            args = [DEFAULT_COMMAND, *args]
        keep_text(self.get_params(ctx))
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn this CPU server into an inference server for transformer models. The default command is serve.\n\n"
    "Example: launch --model demo --instances 4",
    epilog="Options can also be set by LAUNCH_* environment variables and by a file; see launch config --help.",
)


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Lists ``--version`` in help; it is answered before this module is imported."""


COMMANDS = (
    Command(serve.serve, "launch --model demo --instances 4 --port 8000"),
    Command(
        topology.topology,
        "launch topology --instances 4 --svg plan.svg",
        (HTTP, CONNECTIONS, ACCESS, ADMINISTRATION, LIMITS, SUPERVISION),
    ),
    Command(
        run.run,
        "launch run --instances 4 -- python train.py --seed {instance}",
        settings={"allow_interspersed_args": False},
    ),
    Command(doctor.doctor, "launch doctor --json"),
    Command(ps.ps, "launch ps --json"),
    Command(stop.stop, "launch stop demo-8000"),
    Command(config.config, "launch config --instances 4 > launch.toml"),
)
BENCH_COMMANDS = (
    Command(bench.load, "launch bench load --url http://127.0.0.1:8000 -n 10000"),
    Command(bench.baseline, "launch bench baseline --model demo --batch 32"),
    Command(bench.echo, "launch bench echo --port 8090"),
    Command(bench.throughput, "launch bench throughput --instances 4 --dtype fp32"),
)
CTL_COMMANDS = (
    Command(ctl.restart, "launch ctl restart --port 8000"),
    Command(ctl.plan, "launch ctl plan --instances 2"),
    Command(ctl.status, "launch ctl status --json"),
)

control = typer.Typer(
    cls=CommandGroup,
    help="Change a running server without interruption.\n\nExample: launch ctl restart --port 8000",
    no_args_is_help=True,
)
app.add_typer(control, name="ctl")
benchmarks = typer.Typer(
    cls=CommandGroup,
    help="Measure a server over HTTP, the workers alone, a plain script, or a server that does nothing.\n\n"
    "Example: launch bench load --url http://127.0.0.1:8000",
    no_args_is_help=True,
)
app.add_typer(benchmarks, name="bench")
for each in COMMANDS:
    add_command(app, each)
for each in CTL_COMMANDS:
    add_command(control, each)
for each in BENCH_COMMANDS:
    add_command(benchmarks, each)
