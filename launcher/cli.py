"""The command line. Each command builds options and calls one function; nothing is decided here.

``serve`` is the default command: ``launch --instances 4`` is ``launch serve --instances 4``. Exit codes: 0 fine,
1 failed at run time, 2 usage, 3 the machine cannot do what was asked.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.bench.command import Count, Lengths, Longest, Seed, Texts, TokensEach, workload_of
from launcher.bench.command import app as bench
from launcher.core.report.export import Target
from launcher.errors import LauncherError, UsageError
from launcher.options import (
    DEFAULT_HOST,
    DEFAULT_MODEL,
    DEFAULT_PORT,
    Allocator,
    Backend,
    Dtype,
    FrontOptions,
    Layout,
    LogLevel,
    LogOptions,
    MachineOptions,
    ModelOptions,
    OnFailure,
    OpenMP,
    RunOptions,
    RuntimeOptions,
    ServeOptions,
    SuperviseOptions,
    TaskChoice,
)

DEFAULT_COMMAND = "serve"
FRONT = FrontOptions()
SUPERVISE = SuperviseOptions()


class DefaultCommandGroup(TyperGroup):
    """Puts ``serve`` in front when the first word is an option of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {"-h", "--help", "--version", "--install-completion", "--show-completion"}
        if not args or (args[0].startswith("-") and args[0].split("=")[0] not in own):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn this CPU server into an inference server for transformer models. Without a command: serve.",
)


app.add_typer(bench, name="bench")


def _count_or_auto(name: str, text: str, least: int) -> int | None:
    """The number in ``text``, None for ``auto``. Raises ``UsageError``."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise UsageError(f"{name} {text}: a whole number of at least {least}, or auto, is what works")
    return int(text)


MACHINE, MODEL, SERVER, PROGRAMS, OUTPUT = "Machine and plan", "Model", "Server", "Programs", "Output"

Instances = Annotated[
    str, typer.Option(help="Number of model instances, or auto.", metavar="N|auto", rich_help_panel=MACHINE)
]
CoresPerInstance = Annotated[
    int | None, typer.Option(help="Physical cores of each instance.", min=1, rich_help_panel=MACHINE)
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Length classes, each with an instance of its own: LENGTH:CORES,…,max:CORES (tokens : cores), "
        "such as 32:8,384:16,max:24; auto chooses by prediction.",
        metavar="SPEC|auto",
        rich_help_panel=MACHINE,
    ),
]
PlanLengths = Annotated[
    Path | None,
    typer.Option(
        "--lengths",
        help="Histogram of lengths (lines of: tokens count) for --classes auto and predictions; otherwise the "
        "built-in mix.",
        metavar="FILE",
        rich_help_panel=MACHINE,
    ),
]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure", help="Measure costs anew, whatever was measured at an earlier start.", rich_help_panel=MODEL
    ),
]
ReserveCores = Annotated[
    str, typer.Option(help="Cores kept free for the front, or auto.", metavar="N|auto", rich_help_panel=MACHINE)
]
Oversubscribe = Annotated[
    bool, typer.Option("--oversubscribe", help="Allow more instances than cores.", rich_help_panel=MACHINE)
]
MixKinds = Annotated[
    bool,
    typer.Option(
        "--mix-kinds", help="Allow performance and efficiency cores in one instance.", rich_help_panel=MACHINE
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Fail where binding is less than asked, or is missed.", rich_help_panel=MACHINE),
]
Sysroot = Annotated[
    Path, typer.Option(help="Read the machine from this tree (a copy of /sys and /proc).", rich_help_panel=MACHINE)
]
MachineFile = Annotated[
    Path | None,
    typer.Option(
        help="Plan for another machine: a file (from --save, --json or lscpu -p; - is standard input) or the name of a "
        "known machine, such as c5.metal. With 'list', topology lists the names. Reports only.",
        metavar="FILE|NAME",
        rich_help_panel=MACHINE,
    ),
]
AllocatorOption = Annotated[
    Allocator,
    typer.Option(
        "--allocator", help="Memory allocator to preload; auto takes tcmalloc or jemalloc.", rich_help_panel=MACHINE
    ),
]
OpenMPOption = Annotated[
    OpenMP,
    typer.Option("--openmp", help="OpenMP runtime; auto and gnu are what torch brings.", rich_help_panel=MACHINE),
]
Model = Annotated[
    str,
    typer.Option(
        help="Hub id, local folder, demo, or random:SHAPE (bert-base, bert-large, minilm, tiny).",
        rich_help_panel=MODEL,
    ),
]
TaskOption = Annotated[TaskChoice, typer.Option(help="What the model is served for.", rich_help_panel=MODEL)]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="Number format; auto is bf16 where the CPU has it; int8 is faster and coarser, how much is measured.",
        rich_help_panel=MODEL,
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        help="What runs the model; compile takes some ten seconds longer to start, fake computes nothing.",
        rich_help_panel=MODEL,
    ),
]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        "--layout",
        help="How items share a batch: packed where the model takes that, otherwise padded and sorted by length; "
        "sorted in any case; or padded as they come, for comparison.",
        rich_help_panel=MODEL,
    ),
]
FakeSeconds = Annotated[
    float | None,
    typer.Option(
        help="Seconds that --backend fake takes for a token; 0 without it.",
        min=0.0,
        rich_help_panel=MODEL,
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest text in tokens; at most the model's own.", min=2, rich_help_panel=MODEL)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=MODEL)
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)]
Port = Annotated[
    int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535, rich_help_panel=SERVER)
]
BodyBytes = Annotated[int, typer.Option(help="Largest request body in bytes.", min=1, rich_help_panel=SERVER)]
RequestItems = Annotated[int, typer.Option(help="Most texts in one request.", min=1, rich_help_panel=SERVER)]
QueueItems = Annotated[int, typer.Option(help="Most texts that wait or run.", min=1, rich_help_panel=SERVER)]
BatchTokens = Annotated[
    int, typer.Option(help="Token budget of a batch, padding counted.", min=1, rich_help_panel=SERVER)
]
DrainSeconds = Annotated[
    float, typer.Option(help="Longest time to finish what runs at the end.", min=0.0, rich_help_panel=SERVER)
]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Least severe level that is logged.", rich_help_panel=OUTPUT)]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, start nothing.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT)]


def _machine_options(
    instances: str,
    cores_per_instance: int | None,
    classes: str | None,
    reserve_cores: str,
    oversubscribe: bool,
    mix_kinds: bool,
    strict: bool,
    sysroot: Path,
    machine_file: Path | None,
    lengths: Path | None = None,
) -> MachineOptions:
    return MachineOptions(
        sysroot=sysroot,
        machine_file=machine_file,
        instances=_count_or_auto("--instances", instances, 1),
        cores_per_instance=cores_per_instance,
        classes=classes,
        reserve_cores=_count_or_auto("--reserve-cores", reserve_cores, 0),
        oversubscribe=oversubscribe,
        mix_kinds=mix_kinds,
        strict=strict,
        lengths=lengths,
    )


@app.command()
def serve(
    instances: Instances = "auto",
    cores_per_instance: CoresPerInstance = None,
    classes: Classes = None,
    lengths: PlanLengths = None,
    reserve_cores: ReserveCores = "auto",
    oversubscribe: Oversubscribe = False,
    mix_kinds: MixKinds = False,
    strict: Strict = False,
    sysroot: Sysroot = Path("/"),
    machine: MachineFile = None,
    allocator: AllocatorOption = "auto",
    openmp: OpenMPOption = "auto",
    model: Model = DEFAULT_MODEL,
    task: TaskOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "eager",
    fake_seconds_per_token: FakeSeconds = None,
    layout: LayoutOption = "auto",
    max_length: MaxLength = None,
    trust_remote_code: TrustRemoteCode = False,
    measure: MeasureOption = False,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    max_body_bytes: BodyBytes = FRONT.body_bytes,
    max_request_items: RequestItems = FRONT.request_items,
    max_queue_items: QueueItems = FRONT.queue_items,
    batch_tokens: BatchTokens = FRONT.batch_tokens,
    drain_seconds: DrainSeconds = FRONT.drain_seconds,
    log_level: LogLevelOption = "info",
    log_json: LogJson = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Serve a model from instances that are bound to their cores (the default command)."""
    from launcher.serve.reports import Wanted, show
    from launcher.serve.server import run

    options = ServeOptions(
        machine=_machine_options(
            instances,
            cores_per_instance,
            classes,
            reserve_cores,
            oversubscribe,
            mix_kinds,
            strict,
            sysroot,
            machine,
            lengths,
        ),
        runtime=RuntimeOptions(allocator, openmp),
        model=ModelOptions(model, task, dtype, backend, max_length, trust_remote_code, fake_seconds_per_token, layout),
        front=FrontOptions(
            host=host,
            port=port,
            body_bytes=max_body_bytes,
            request_items=max_request_items,
            queue_items=max_queue_items,
            batch_tokens=batch_tokens,
            drain_seconds=drain_seconds,
        ),
        log=LogOptions(log_level, log_json),
        measure=measure,
    )
    if dry_run:
        show(options, Wanted(json))
        return
    if json:
        raise UsageError("--json is for reports: use it with --dry-run, or with the command topology")
    run(options)


@app.command()
def topology(
    instances: Instances = "auto",
    cores_per_instance: CoresPerInstance = None,
    classes: Classes = None,
    lengths: PlanLengths = None,
    reserve_cores: ReserveCores = "auto",
    oversubscribe: Oversubscribe = False,
    mix_kinds: MixKinds = False,
    strict: Strict = False,
    sysroot: Sysroot = Path("/"),
    machine: MachineFile = None,
    allocator: AllocatorOption = "auto",
    openmp: OpenMPOption = "auto",
    model: Model = DEFAULT_MODEL,
    task: TaskOption = "auto",
    dtype: DtypeOption = "auto",
    max_length: MaxLength = None,
    json: Json = False,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the machine to this file, for --machine elsewhere.", metavar="FILE", rich_help_panel=OUTPUT
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(help="Draw machine and plan into this file.", metavar="FILE", rich_help_panel=OUTPUT),
    ] = None,
    export: Annotated[
        Target | None,
        typer.Option(help="Print the plan for another supervisor instead of the report.", rich_help_panel=OUTPUT),
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Argument(
            help="With --export: the program that each instance is, after --; {instance} becomes its number. "
            "Otherwise a server of one instance."
        ),
    ] = None,
) -> None:
    """Show the machine and the plan: what would be started where, and why. Nothing is started."""
    from launcher.serve.reports import Wanted, show

    options = ServeOptions(
        machine=_machine_options(
            instances,
            cores_per_instance,
            classes,
            reserve_cores,
            oversubscribe,
            mix_kinds,
            strict,
            sysroot,
            machine,
            lengths,
        ),
        runtime=RuntimeOptions(allocator, openmp),
        model=ModelOptions(model, task, dtype, "eager", max_length),
    )
    show(options, Wanted(json, save, svg, export, tuple(program or ())))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    program: Annotated[
        list[str],
        typer.Argument(
            help="What to start, after --; {instance}, {instances}, {cpus}, {threads} and {nodes} are filled in.",
            metavar="PROGRAM [ARGS]...",
        ),
    ],
    instances: Instances = "auto",
    cores_per_instance: CoresPerInstance = None,
    reserve_cores: Annotated[
        int, typer.Option(help="Cores on which nothing is started.", min=0, rich_help_panel=MACHINE)
    ] = 0,
    oversubscribe: Oversubscribe = False,
    mix_kinds: MixKinds = False,
    strict: Strict = False,
    sysroot: Sysroot = Path("/"),
    machine: MachineFile = None,
    allocator: AllocatorOption = "system",
    openmp: OpenMPOption = "auto",
    on_failure: Annotated[
        OnFailure,
        typer.Option(
            "--on-failure",
            help="When a program fails: stop the others, let them continue, or restart it.",
            rich_help_panel=PROGRAMS,
        ),
    ] = "stop",
    max_failures: Annotated[
        int,
        typer.Option(help="Failures in a row that end the restarts.", min=1, rich_help_panel=PROGRAMS),
    ] = SUPERVISE.max_failures,
    grace_seconds: Annotated[
        float, typer.Option(help="Time to end after a signal, before SIGKILL.", min=0.0, rich_help_panel=PROGRAMS)
    ] = 30.0,
    log_dir: Annotated[
        Path | None,
        typer.Option(help="Write the output of each instance here as well.", metavar="DIR", rich_help_panel=OUTPUT),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="With --log-dir: show no output of the programs.", rich_help_panel=OUTPUT)
    ] = False,
    log_level: LogLevelOption = "info",
    log_json: LogJson = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Start copies of any program, each on its own cores: launch run -- python train.py --seed {instance}"""
    from launcher.run import runner

    options = RunOptions(
        program=tuple(program),
        machine=_machine_options(
            instances,
            cores_per_instance,
            None,
            str(reserve_cores),
            oversubscribe,
            mix_kinds,
            strict,
            sysroot,
            machine,
        ),
        runtime=RuntimeOptions(allocator, openmp),
        on_failure=on_failure,
        grace_seconds=grace_seconds,
        log_dir=log_dir,
        quiet=quiet,
        supervise=SuperviseOptions(max_failures=max_failures),
        log=LogOptions(log_level, log_json),
    )
    if dry_run:
        runner.show(options, as_json=json)
        return
    if json:
        raise UsageError("--json is for reports: use it with --dry-run")
    runner.run(options)


@bench.command()
def throughput(
    instances: Instances = "auto",
    cores_per_instance: CoresPerInstance = None,
    classes: Classes = None,
    reserve_cores: ReserveCores = "auto",
    oversubscribe: Oversubscribe = False,
    mix_kinds: MixKinds = False,
    strict: Strict = False,
    allocator: AllocatorOption = "auto",
    openmp: OpenMPOption = "auto",
    model: Model = DEFAULT_MODEL,
    task: TaskOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "eager",
    fake_seconds_per_token: FakeSeconds = None,
    layout: LayoutOption = "auto",
    max_length: MaxLength = None,
    trust_remote_code: TrustRemoteCode = False,
    batch_tokens: BatchTokens = FRONT.batch_tokens,
    measure: MeasureOption = False,
    queued: Annotated[
        int | None, typer.Option(help="Texts that wait or run at any time; otherwise all come at once.", min=1)
    ] = None,
    count: Count = 4000,
    texts: Texts = None,
    lengths: Lengths = None,
    tokens: TokensEach = None,
    seed: Seed = 1,
    longest: Longest = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Texts at the start that are not counted; otherwise a tenth, at most 200.", min=0),
    ] = None,
    log_level: LogLevelOption = "warning",
    log_json: LogJson = False,
    json: Json = False,
) -> None:
    """Start instances as serve does, and print what their workers compute of a mix of texts, without HTTP."""
    from launcher.bench.tables import show_json
    from launcher.bench.throughput import ThroughputOptions, run_throughput, show_throughput

    options = ServeOptions(
        machine=_machine_options(
            instances,
            cores_per_instance,
            classes,
            reserve_cores,
            oversubscribe,
            mix_kinds,
            strict,
            Path("/"),
            None,
        ),
        runtime=RuntimeOptions(allocator, openmp),
        model=ModelOptions(
            model,
            task,
            dtype,
            backend,
            max_length,
            trust_remote_code,
            fake_seconds_per_token,
            layout,
        ),
        front=FrontOptions(batch_tokens=batch_tokens),
        log=LogOptions(log_level, log_json),
        measure=measure,
    )
    workload = workload_of(count, texts, lengths, tokens, seed, longest)
    uncounted = min(200, count // 10) if warmup is None else warmup
    figures = run_throughput(options, ThroughputOptions(queued, uncounted), workload)
    (show_json if json else show_throughput)(figures)


@app.command()
def doctor(sysroot: Sysroot = Path("/"), json: Json = False) -> None:
    """Report performance problems of this machine, with the evidence and the command that fixes each."""
    from launcher.serve.examine import show

    show(sysroot, as_json=json)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"launch {version('launcher')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``launch`` command."""
    try:
        app(standalone_mode=True)
    except LauncherError as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
