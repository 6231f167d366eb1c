"""The command line: all commands, and what they have in common.

``serve`` is the default command: ``launch --instances 4`` is ``launch serve --instances 4``.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.cli import bench, config, doctor, run, serve, topology
from launcher.cli.flags import Usage, add_command, keep_text
from launcher.options.groups import HTTP, LIMITS, SUPERVISION

DEFAULT_COMMAND = "serve"


class DefaultCommandGroup(TyperGroup):
    """Puts ``serve`` in front when the first word is an option of it."""

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
    help="Turn this CPU server into an inference server for transformer models. The default command is serve.",
    epilog="Options can also be set by LAUNCH_* environment variables and by a file; see launch config --help.",
)


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Lists ``--version`` in help; it is answered before this module is imported."""


add_command(app, serve.serve, Usage("launch --model demo --instances 4 --port 8000"))
add_command(app, topology.topology, Usage("launch topology --instances 4 --svg plan.svg", (HTTP, LIMITS, SUPERVISION)))
add_command(
    app,
    run.run,
    Usage("launch run --instances 4 -- python train.py --seed {instance}"),
    allow_interspersed_args=False,
)
add_command(app, doctor.doctor, Usage("launch doctor --json"))
add_command(app, config.config, Usage("launch config --instances 4 > launch.toml"))

benches = typer.Typer(
    help="Measure: load over HTTP, the workers alone, a plain script, or a server that does nothing.",
    no_args_is_help=True,
)
app.add_typer(benches, name="bench")
add_command(benches, bench.load, Usage("launch bench load --url http://127.0.0.1:8000 -n 10000"))
add_command(benches, bench.baseline, Usage("launch bench baseline --model demo --batch 32"))
add_command(benches, bench.echo, Usage("launch bench echo --port 8090"))
add_command(benches, bench.throughput, Usage("launch bench throughput --instances 4 --dtype fp32"))
