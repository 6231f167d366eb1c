"""Settings and their defaults, one home each. The command line fills them; nothing else reads a default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bf16", "fp32", "int8"]
TaskChoice = Literal["auto", "embed", "classify", "tag"]
Backend = Literal["eager", "compile", "fake"]
Layout = Literal["auto", "sorted", "fifo"]
Allocator = Literal["auto", "tcmalloc", "jemalloc", "system"]
OpenMP = Literal["auto", "intel", "gnu"]
OnFailure = Literal["stop", "continue", "restart"]
LogLevel = Literal["debug", "info", "warning", "error"]

FIFO_BATCH_ITEMS = 32
DEFAULT_MODEL = "demo"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """Which machine is planned for, and how. ``None`` means that the planner decides.

    ``machine_file`` describes a machine that is not here; ``-`` is standard input. It excludes ``sysroot``.
    ``classes`` may be ``auto``; ``lengths`` is a histogram of lengths for that and for predictions, None the built-in
    mix.
    """

    sysroot: Path = Path("/")
    machine_file: Path | None = None
    instances: int | None = None
    cores_per_instance: int | None = None
    classes: str | None = None
    reserve_cores: int | None = None
    oversubscribe: bool = False
    mix_kinds: bool = False
    strict: bool = False
    lengths: Path | None = None


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Libraries that are loaded before the program: its allocator, and its OpenMP runtime."""

    allocator: Allocator = "auto"
    openmp: OpenMP = "auto"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is run. ``max_length`` (tokens) can only lower the model's own limit.

    ``layout``: items packed where the model takes that, otherwise padded and sorted by length (``auto``); the latter
    in any case (``sorted``); or padded in batches of ``FIFO_BATCH_ITEMS`` as they come (``fifo``), for comparison.

    ``fake_seconds_per_token`` is for the fake backend alone; None is 0 there.
    """

    model: str = DEFAULT_MODEL
    task: TaskChoice = "auto"
    dtype: Dtype = "auto"
    backend: Backend = "eager"
    max_length: int | None = None
    trust_remote_code: bool = False
    fake_seconds_per_token: float | None = None
    layout: Layout = "auto"


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """The HTTP side and its limits. ``body_bytes`` is the largest body, ``request_items`` the most texts in one
    request, ``text_characters`` the longest text that is tokenized at all, ``queue_items`` the bound of the queue,
    ``batch_tokens`` the token budget of one batch, padding counted. ``drain_seconds`` bounds the end."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    body_bytes: int = 8 * 1024 * 1024
    request_items: int = 2048
    text_characters: int = 1_000_000
    queue_items: int = 16_384
    batch_tokens: int = 2048
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class SuperviseOptions:
    """How instances are kept alive. After ``max_failures`` workers in a row that never got ready, one is given up.

    ``backoff_seconds`` is doubled at each failure in a row, up to ``backoff_limit_seconds``. A worker that was
    ready for ``settled_seconds`` ends the row: what failed before it does not count any more.
    """

    start_seconds: float = 600.0
    max_failures: int = 5
    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 30.0
    settled_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What is logged, and in which form."""

    level: LogLevel = "info"
    json: bool = False


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything ``launch serve`` needs. ``measure``: costs are measured anew, whatever was measured before."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    front: FrontOptions = field(default_factory=FrontOptions)
    supervise: SuperviseOptions = field(default_factory=SuperviseOptions)
    log: LogOptions = field(default_factory=LogOptions)
    measure: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything ``launch run`` needs. ``program`` is what is started once per instance.

    No core is reserved, since no front runs beside the programs; and nothing is preloaded unless it is asked for,
    since the program may be anything. ``grace_seconds`` is the time between the signal to end and SIGKILL.
    """

    program: tuple[str, ...]
    machine: MachineOptions = field(default_factory=lambda: MachineOptions(reserve_cores=0))
    runtime: RuntimeOptions = field(default_factory=lambda: RuntimeOptions(allocator="system"))
    on_failure: OnFailure = "stop"
    grace_seconds: float = 30.0
    log_dir: Path | None = None
    quiet: bool = False
    supervise: SuperviseOptions = field(default_factory=SuperviseOptions)
    log: LogOptions = field(default_factory=LogOptions)
