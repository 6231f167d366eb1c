"""The definitions of all options that an operator can set: dataclasses by subject.

Constants that only a developer would change stay next to the code that uses them.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

from launcher.options.choices import (
    Allocator,
    Backend,
    Dtype,
    ExportMode,
    ExportTarget,
    IsolatedPolicy,
    Layout,
    LogLevel,
    OnFailure,
    OnMachineChange,
    OpenMP,
    TaskChoice,
    TokenIdsPolicy,
)
from launcher.options.option import ClassPath, argument, option, part

# Batch size of --layout fifo, which exists for comparison with other servers; 32 is their usual default.
FIFO_BATCH_ITEMS = 32

KIB, MIB = 1024, 1024 * 1024

# Headings in help, in the order in which they appear.
PLAN = "Plan"
MACHINE = "Machine"
MODEL = "Model"
EXECUTION = "Execution"
HTTP = "HTTP"
ACCESS = "Access"
LIMITS = "Request limits"
CONNECTIONS = "Connections and memory"
ADMINISTRATION = "Administration"
SCHEDULING = "Scheduling"
FAULTS = "Hangs and quarantine"
SUPERVISION = "Supervision"
PROGRAMS = "Programs"
OUTPUT = "Configuration and output"


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """The machine to plan for, and how to plan. ``None`` means that the planner decides.

    ``machine_file`` describes another machine; ``-`` is standard input. It cannot be combined with ``sysroot``.
    ``classes`` may be ``auto``. ``lengths`` is a histogram of lengths for ``auto`` and for predictions; None is the
    built-in one. With ``shared_cores``, the plan ignores the claims of other launchers.
    """

    instances: int | None = option(None, "Number of instances.", group=PLAN, minimum=1, metavar="N|auto", none="auto")
    cores_per_instance: int | None = option(None, "Physical cores per instance.", group=PLAN, minimum=1, metavar="N")
    classes: str | None = option(
        None,
        "Length classes as TOKENS:CORES, e.g. 32:8,384:16,max:24; auto simulates plans.",
        group=PLAN,
        metavar="SPEC|auto",
    )
    lengths: Path | None = option(
        None,
        'Length histogram for --classes auto and predictions; lines of "tokens count".',
        group=PLAN,
        metavar="FILE",
    )
    reserve_cores: int | None = option(
        None, "Cores reserved for the front.", group=PLAN, minimum=0, metavar="N|auto", none="auto"
    )
    oversubscribe: bool = option(False, "Allow more instances than cores.", group=PLAN)
    mix_kinds: bool = option(False, "Allow performance and efficiency cores in one instance.", group=PLAN)
    strict: bool = option(False, "Fail if an instance cannot be bound exactly as planned.", group=PLAN)
    shared_cores: bool = option(False, "Also use cores that other launchers have claimed.", group=PLAN)
    name: str | None = option(
        None, "Name for launch ps and launch stop (default: from model and port).", group=PLAN, metavar="NAME"
    )
    sysroot: Path = option(
        Path("/"), "Read the machine from this copy of /sys and /proc.", group=MACHINE, metavar="DIR"
    )
    isolated: IsolatedPolicy = option(
        "auto", "Whether to use isolated cpus (isolcpus); auto uses them if no others are allowed.", group=MACHINE
    )
    machine_file: Path | None = option(
        None,
        "Plan for another machine: a FILE (--save, --json, lscpu; - is stdin) or a known NAME; 'list' lists them.",
        group=MACHINE,
        name="machine",
        metavar="FILE|NAME",
    )
    probe_seconds: float = option(20.0, "Timeout of each binding probe.", group=MACHINE, minimum=0.1, metavar="SECONDS")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Libraries to preload into the program: its allocator and its OpenMP runtime."""

    allocator: Allocator = option(
        "auto", "Memory allocator to preload; auto picks tcmalloc or jemalloc.", group=MACHINE
    )
    openmp: OpenMP = option("auto", "OpenMP runtime; auto and gnu use the one that torch ships.", group=MACHINE)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model, and how to run it. ``max_length`` (tokens) can only lower the model's own limit.

    ``layout``: inputs packed if the model supports it, otherwise padded and sorted by length (``auto``); always padded
    and sorted (``sorted``); or padded in batches of ``FIFO_BATCH_ITEMS`` in order of arrival (``fifo``).

    With ``measure`` the costs of batches are measured again, even if they are known.

    ``fake_seconds_per_token`` applies only to the fake backend; None is 0 there.
    """

    model: str = option(
        "demo",
        "Hub ID, local directory, demo, or random:SHAPE (bert-base, bert-large, minilm, tiny).",
        group=MODEL,
        metavar="MODEL",
    )
    task: TaskChoice | ClassPath = option(
        "auto", "Task to serve; auto reads it from the model; module:Class is a custom class.", group=MODEL
    )
    max_length: int | None = option(
        None, "Maximum input length in tokens; at most the model's own limit.", group=MODEL, minimum=2, metavar="N"
    )
    trust_remote_code: bool = option(False, "Run Python code shipped with the model.", group=MODEL)
    hub_seconds: float = option(
        10.0, "Timeout of each response of the model hub.", group=MODEL, minimum=0.1, metavar="SECONDS"
    )
    dtype: Dtype = option(
        "auto", "Data type; auto is bf16 if the CPU supports it; int8 is faster and less accurate.", group=EXECUTION
    )
    backend: Backend = option(
        "eager", "Execution backend; compile takes 10 to 20 s longer to start; fake computes nothing.", group=EXECUTION
    )
    layout: Layout = option(
        "auto",
        "Batch layout; auto packs if possible, sorted pads by length, fifo pads in arrival order.",
        group=EXECUTION,
    )
    measure: bool = option(False, "Measure batch costs again instead of using cached ones.", group=EXECUTION)
    fake_seconds_per_token: float | None = option(
        None, "Time per token of --backend fake.", group=EXECUTION, minimum=0.0, metavar="SECONDS"
    )


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """HTTP and its limits.

    ``body_bytes`` limits one request body, ``total_body_bytes`` all bodies and responses held at a time.
    A client must send ``min_upload_rate`` bytes of a body per second, on average over ``upload_window_seconds``.
    ``request_items`` is the number of texts in one request, ``text_characters`` the maximum length of a text before it
    is tokenized, ``result_bytes`` the size of the results of a request whose results vary in size.

    With ``uds``, ``host`` and ``port`` are not used. ``uds_mode`` is in octal digits. API keys are read from
    ``api_key_file`` and from the environment variable ``LAUNCH_API_KEY``, which is not an option.
    """

    host: str = option("127.0.0.1", "Address to listen on.", group=HTTP, metavar="ADDRESS")
    port: int = option(
        8000, "Port to listen on; 0 picks a free port.", group=HTTP, minimum=0, maximum=65535, metavar="PORT"
    )
    backlog: int = option(
        2048, "Maximum number of connections waiting to be accepted.", group=HTTP, minimum=1, metavar="N"
    )
    keep_alive_seconds: float = option(
        75.0, "Close a connection that is idle this long.", group=CONNECTIONS, minimum=0.0, metavar="SECONDS"
    )
    request_seconds: float = option(
        60.0,
        "Time for a client to send a request's headers, then its body.",
        group=CONNECTIONS,
        minimum=0.1,
        metavar="SECONDS",
    )
    drain_seconds: float = option(
        30.0, "Graceful shutdown timeout for admitted requests.", group=HTTP, minimum=0.0, metavar="SECONDS"
    )
    admin_socket: str = option(
        "auto",
        "Unix socket for launch ctl; auto is admin-PORT.sock in $XDG_RUNTIME_DIR/launch or a private folder.",
        group=ADMINISTRATION,
        metavar="PATH|auto|none",
    )
    admin_key_file: Path | None = option(
        None,
        "Allow /admin over HTTP with the key in this file (or set LAUNCH_ADMIN_KEY).",
        group=ADMINISTRATION,
        metavar="FILE",
    )
    token_ids: TokenIdsPolicy = option(
        "refuse",
        "Token ids as inputs: accept those of the model's tokenizer, or decode those of a tiktoken encoding.",
        group=HTTP,
    )
    tokenizer_threads: int = option(2, "Threads that tokenize long texts.", group=HTTP, minimum=1, metavar="N")
    connections: int | None = option(
        None,
        "Maximum number of connections; auto leaves enough of the limit on open files for workers.",
        group=CONNECTIONS,
        name="max_connections",
        minimum=1,
        metavar="N|auto",
        none="auto",
    )
    memory_reserve: int | None = option(
        None,
        "Refuse requests while the control group has less memory left than this; auto is 5 % of its limit.",
        group=CONNECTIONS,
        minimum=0,
        metavar="BYTES|auto",
        none="auto",
    )
    uds: Path | None = option(
        None, "Listen on this Unix socket instead of --host and --port.", group=ACCESS, metavar="PATH"
    )
    uds_mode: str = option("600", "Permissions of the Unix socket, in octal.", group=ACCESS, metavar="MODE")
    api_key_file: Path | None = option(
        None,
        "Require an API key: a file with KEY or NAME KEY per line (or set LAUNCH_API_KEY).",
        group=ACCESS,
        metavar="FILE",
    )
    tls_cert: Path | None = option(
        None, "Serve HTTPS with this certificate chain, in PEM format.", group=ACCESS, metavar="FILE"
    )
    tls_key: Path | None = option(
        None, "Private key of --tls-cert, in PEM format; by default in the same file.", group=ACCESS, metavar="FILE"
    )
    tls_key_password_file: Path | None = option(
        None, "File with the password of the private key.", group=ACCESS, metavar="FILE"
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "Let web pages of this origin call the API, e.g. https://app.example.com; * allows any; may be repeated.",
        group=ACCESS,
        metavar="ORIGIN",
    )
    header_bytes: int = option(
        64 * KIB,
        "Maximum size of the request line, headers and trailers.",
        group=LIMITS,
        name="max_header_bytes",
        minimum=1024,
        metavar="BYTES",
    )
    body_bytes: int = option(
        8 * MIB, "Maximum size of a request body.", group=LIMITS, name="max_body_bytes", minimum=1, metavar="BYTES"
    )
    total_body_bytes: int = option(
        256 * MIB,
        "Maximum memory for all request bodies and responses held at a time.",
        group=CONNECTIONS,
        name="max_total_body_bytes",
        minimum=1,
        metavar="BYTES",
    )
    min_upload_rate: int = option(
        4096, "Minimum rate at which a client must send a body.", group=CONNECTIONS, minimum=0, metavar="BYTES/S"
    )
    upload_window_seconds: float = option(
        10.0, "Time over which the upload rate is measured.", group=CONNECTIONS, minimum=0.1, metavar="SECONDS"
    )
    request_items: int = option(
        2048, "Maximum number of inputs in a request.", group=LIMITS, name="max_request_items", minimum=1, metavar="N"
    )
    text_characters: int = option(
        1_000_000,
        "Maximum length of a text before it is tokenized.",
        group=LIMITS,
        name="max_text_characters",
        minimum=1,
        metavar="N",
    )
    result_bytes: int = option(
        16 * MIB,
        "Maximum size of the results of a request, if they are per token or of a custom class.",
        group=LIMITS,
        name="max_result_bytes",
        minimum=1,
        metavar="BYTES",
    )


@dataclass(frozen=True, slots=True)
class SchedulingOptions:
    """The queue, the batches, how requests of different priorities share them, and when a batch counts as hung.

    ``queue_seconds`` and ``queue_items`` limit what one client may have in the queue, less half of what others have
    there. ``batch_tokens`` is the token budget of one batch, padding included.

    A batch is overdue when it has run ``hang_factor`` times longer than predicted, and at least ``hang_seconds``. Its
    worker is replaced then if it uses no CPU time, and after ``busy_hang_seconds`` if it does.
    Inputs of a lost instance are sent to another one, ``max_attempts`` times in all. Those with which two workers were
    lost are refused for ``quarantine_seconds``.
    """

    queue_seconds: float = option(
        300.0,
        "Maximum predicted time of the queued work of a client.",
        group=SCHEDULING,
        name="max_queue_seconds",
        minimum=0.1,
        metavar="SECONDS",
    )
    queue_items: int = option(
        16_384,
        "Maximum number of queued and running inputs of a client.",
        group=SCHEDULING,
        name="max_queue_items",
        minimum=1,
        metavar="N",
    )
    batch_tokens: int = option(
        2048, "Token budget of a batch, padding included.", group=SCHEDULING, minimum=1, metavar="N"
    )
    interactive_share: float = option(
        0.25,
        "Share of the queue that bulk requests cannot take.",
        group=SCHEDULING,
        minimum=0.0,
        maximum=1.0,
        metavar="SHARE",
    )
    bulk_batch_seconds: float = option(
        0.05, "Predicted duration limit of a bulk batch.", group=SCHEDULING, minimum=0.001, metavar="SECONDS"
    )
    hang_factor: float = option(
        5.0,
        "A batch that takes this many times longer than predicted is overdue.",
        group=FAULTS,
        minimum=1.0,
        metavar="FACTOR",
    )
    hang_seconds: float = option(
        1.0,
        "Minimum duration before a batch is overdue; a worker that uses no CPU time is then replaced.",
        group=FAULTS,
        minimum=0.1,
        metavar="SECONDS",
    )
    busy_hang_seconds: float = option(
        30.0,
        "Minimum duration of a batch before a worker that uses CPU time is replaced.",
        group=FAULTS,
        minimum=0.1,
        metavar="SECONDS",
    )
    max_attempts: int = option(
        2, "Number of attempts to compute an input, each on another worker.", group=FAULTS, minimum=1, metavar="N"
    )
    quarantine_seconds: float = option(
        3600.0,
        "How long to refuse an input with which two workers were lost; 0 disables this.",
        group=FAULTS,
        minimum=0.0,
        metavar="SECONDS",
    )


@dataclass(frozen=True, slots=True)
class SuperviseOptions:
    """How instances are supervised. After ``max_failures`` consecutive workers that never became ready, an instance has
    failed permanently.

    ``backoff_seconds`` doubles with each consecutive failure, up to ``backoff_limit_seconds``. A worker that was ready
    for ``settled_seconds`` resets the count of failures. ``stop_seconds`` is the time between the request to stop and
    SIGKILL.
    """

    start_seconds: float = option(
        600.0, "Time for a worker to become ready.", group=SUPERVISION, minimum=0.1, metavar="SECONDS"
    )
    stop_seconds: float = option(
        5.0,
        "Time for a worker to exit after the drain, before SIGKILL.",
        group=SUPERVISION,
        minimum=0.0,
        metavar="SECONDS",
    )
    max_failures: int = option(
        5, "Consecutive failures after which an instance is not restarted.", group=SUPERVISION, minimum=1, metavar="N"
    )
    backoff_seconds: float = option(
        0.5,
        "Delay before the first restart; doubles with each failure.",
        group=SUPERVISION,
        minimum=0.0,
        metavar="SECONDS",
    )
    backoff_limit_seconds: float = option(
        30.0, "Maximum delay before a restart.", group=SUPERVISION, minimum=0.0, metavar="SECONDS"
    )
    settled_seconds: float = option(
        60.0, "Time after which earlier failures no longer count.", group=SUPERVISION, minimum=0.0, metavar="SECONDS"
    )


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a server does when the machine changes while it runs: its cpus, quota or memory. ``replan_seconds`` is the
    minimum time between two changes of the plan for this reason."""

    on_machine_change: OnMachineChange = option(
        "replan",
        "When cpus, cpu quota or memory limit change: make another plan and apply it, or only report it.",
        group=ADMINISTRATION,
    )
    replan_seconds: float = option(
        10.0,
        "Minimum time between two plans for a changed machine.",
        group=ADMINISTRATION,
        minimum=0.0,
        metavar="SECONDS",
    )


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The log: level and format."""

    level: LogLevel = option("info", "Minimum severity to log.", group=OUTPUT, name="log_level")
    json: bool = option(False, "Log one JSON object per line.", group=OUTPUT, name="log_json")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """All options of ``launch serve``."""

    machine: MachineOptions = part(MachineOptions())
    runtime: RuntimeOptions = part(RuntimeOptions())
    model: ModelOptions = part(ModelOptions())
    front: FrontOptions = part(FrontOptions())
    scheduling: SchedulingOptions = part(SchedulingOptions())
    supervise: SuperviseOptions = part(SuperviseOptions())
    watch: WatchOptions = part(WatchOptions())
    log: LogOptions = part(LogOptions())


@dataclass(frozen=True, slots=True)
class RunOptions:
    """All options of ``launch run``. ``program`` is started once per instance.

    By default no core is reserved, since there is no front, and nothing is preloaded, since the program can be
    anything. ``grace_seconds`` is the time between the signal to stop and SIGKILL.
    """

    program: tuple[str, ...] = argument(
        MISSING,
        "Program to start, after --; {instance}, {instances}, {cpus}, {threads} and {nodes} are replaced.",
        metavar="PROGRAM [ARGS]...",
    )
    machine: MachineOptions = part(MachineOptions(reserve_cores=0), without=("classes", "lengths"))
    runtime: RuntimeOptions = part(RuntimeOptions(allocator="system"))
    on_failure: OnFailure = option(
        "stop",
        "If a program fails: stop the others, let them continue, or restart it.",
        group=PROGRAMS,
        metavar="ACTION",
    )
    grace_seconds: float = option(
        30.0, "Time to exit after a signal, before SIGKILL.", group=PROGRAMS, minimum=0.0, metavar="SECONDS"
    )
    supervise: SuperviseOptions = part(SuperviseOptions(), without=("start_seconds", "stop_seconds"))
    log_dir: Path | None = option(None, "Also write each instance's output here.", group=OUTPUT, metavar="DIR")
    quiet: bool = option(False, "With --log-dir: do not show the programs' output.", group=OUTPUT)
    log: LogOptions = part(LogOptions())


@dataclass(frozen=True, slots=True)
class DryRunOptions:
    """Whether only the plan is printed, and in which format."""

    command_line_only: ClassVar[bool] = True

    dry_run: bool = option(False, "Print the plan and start nothing.", group=OUTPUT)
    json: bool = option(False, "With --dry-run: print the plan as JSON.", group=OUTPUT)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The output of a report on a machine and its plan.

    ``save`` is the file for the machine, ``svg`` the file for the drawing; ``export`` prints the plan for another
    supervisor that starts ``program`` once per instance, or one server with all instances (``export_mode``).
    """

    command_line_only: ClassVar[bool] = True

    json: bool = option(False, "Print the report as JSON.", group=OUTPUT)
    save: Path | None = option(None, "Write the machine to FILE, for --machine.", group=OUTPUT, metavar="FILE")
    svg: Path | None = option(None, "Draw the machine and the plan to FILE, as SVG.", group=OUTPUT, metavar="FILE")
    export: ExportTarget | None = option(
        None, "Print the plan for another supervisor instead of the report.", group=OUTPUT
    )
    export_mode: ExportMode = option(
        "instances",
        "With --export: a service for each instance, or one server with its dispatcher.",
        group=OUTPUT,
    )
    program: tuple[str, ...] = argument(
        (),
        "With --export: the program of each instance, after --; without it, a server of one instance.",
        "PROGRAM [ARGS]...",
    )


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The machine to examine. ``sample_seconds`` is how long it is watched for load by other programs."""

    machine: MachineOptions = part(MachineOptions(), only=("sysroot", "probe_seconds"))
    sample_seconds: float = option(
        0.4, "How long to watch the machine for other load.", group=MACHINE, minimum=0.05, metavar="SECONDS"
    )


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """The output format of a command."""

    command_line_only: ClassVar[bool] = True

    json: bool = option(False, "Print JSON.", group=OUTPUT)


@dataclass(frozen=True, slots=True)
class StopOptions:
    """The launchers to stop, by name or process id, and how long to wait for all."""

    command_line_only: ClassVar[bool] = True

    names: tuple[str, ...] = argument((), "Names or process IDs, as launch ps prints them.", metavar="[NAME|PID]...")
    all: bool = option(False, "Stop all launchers of this user; as root, of all users.", group=OUTPUT)
    seconds: float = option(60.0, "How long to wait for them to exit.", group=OUTPUT, minimum=0.0, metavar="SECONDS")
    kill: bool = option(False, "Kill those that have not exited by then.", group=OUTPUT)
