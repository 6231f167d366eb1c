"""The options of the commands under ``launch bench``; ``throughput``, which starts instances, also has those of
``serve``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launcher.options.choices import EmbeddingsApi, VectorEncoding
from launcher.options.definitions import (
    ACCESS,
    CONNECTIONS,
    HTTP,
    LIMITS,
    OUTPUT,
    FormatOptions,
    FrontOptions,
    LogOptions,
    ModelOptions,
    ServeOptions,
)
from launcher.options.option import option, part

WORKLOAD = "Workload"
LOAD = "Load"
MEASUREMENT = "Measurement"

DEFAULT_URL = f"http://{FrontOptions().host}:{FrontOptions().port}"


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """The texts to measure with: ``count`` texts of the built-in workload, unless ``texts``, ``lengths`` or ``tokens``
    is set.
    """

    command_line_only: ClassVar[bool] = True

    count: int = option(4000, "Number of texts.", group=WORKLOAD, minimum=1, metavar="N", short="-n")
    texts: Path | None = option(
        None, "Use the lines of FILE instead of the built-in workload.", group=WORKLOAD, metavar="FILE"
    )
    lengths: Path | None = option(
        None,
        'Draw lengths from a histogram: lines of "tokens count", or JSON {"tokens": count}.',
        group=WORKLOAD,
        metavar="FILE",
    )
    tokens: int | None = option(
        None, "Use texts of N tokens each instead of the built-in workload.", group=WORKLOAD, minimum=3, metavar="N"
    )
    seed: int = option(1, "Seed of the random texts.", group=WORKLOAD, metavar="N")
    longest: int | None = option(None, "Cut random lengths at N tokens.", group=WORKLOAD, minimum=3, metavar="N")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The load on a server.

    ``rate`` (requests/s) makes the loop open; otherwise ``connections`` requests are always in flight. Each request has
    ``per_request`` texts. The first ``warmup`` requests are not counted; None is a tenth of them, at most 100.
    """

    command_line_only: ClassVar[bool] = True

    url: str = DEFAULT_URL
    connections: int = option(
        64, "Concurrent connections (closed loop).", group=LOAD, minimum=1, metavar="N", short="-c"
    )
    rate: float | None = option(
        None, "Requests per second: an open loop instead.", group=LOAD, minimum=0.001, metavar="RATE"
    )
    per_request: int = option(1, "Texts per request.", group=LOAD, minimum=1, metavar="N")
    warmup: int | None = option(
        None,
        "Requests at the start that are not counted (default: a tenth, at most 100).",
        group=LOAD,
        minimum=0,
        metavar="N",
    )
    api: EmbeddingsApi = option("openai", "API of the server.", group=LOAD)
    model: str | None = option(
        None, "Model name to send (default: the first one that the server lists).", group=LOAD, metavar="NAME"
    )
    encoding: VectorEncoding = option("float", "Encoding of the vectors.", group=LOAD)


@dataclass(frozen=True, slots=True)
class LoadCommandOptions:
    """All options of ``launch bench load``. Several servers are loaded in turn, ``rounds`` times each."""

    command_line_only: ClassVar[bool] = True

    url: tuple[str, ...] = option(
        (),
        f"Server address, or unix:PATH (default: {DEFAULT_URL}); repeat it to compare servers in turn.",
        group=LOAD,
        metavar="URL",
    )
    rounds: int = option(1, "Runs on each server; medians are printed.", group=LOAD, minimum=1, metavar="N")
    pause: float = option(
        2.0, "Seconds between runs, for servers to become idle.", group=LOAD, minimum=0.0, metavar="SECONDS"
    )
    load: LoadOptions = part(LoadOptions())
    workload: WorkloadOptions = part(WorkloadOptions())
    format: FormatOptions = part(FormatOptions())
    plot: Path | None = option(
        None, "Plot latencies and rate to FILE (.png or .svg; needs matplotlib).", group=OUTPUT, metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class BaselineOptions:
    """All options of ``launch bench baseline``."""

    command_line_only: ClassVar[bool] = True

    model: ModelOptions = part(ModelOptions(), only=("model",))
    batch: int = option(32, "Texts per call.", group=MEASUREMENT, minimum=1, metavar="N")
    workload: WorkloadOptions = part(WorkloadOptions(count=1000))


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """The port on 127.0.0.1, the number of values in a vector, and the CPU of the worker; None: no worker."""

    command_line_only: ClassVar[bool] = True

    port: int = option(8090, "Port on 127.0.0.1.", group=HTTP, minimum=1, maximum=65535, metavar="PORT")
    width: int = option(384, "Number of values in a vector.", group=HTTP, minimum=1, metavar="N")
    worker_cpu: int | None = option(
        None, "Wait for a worker process on this CPU before each response.", group=HTTP, minimum=0, metavar="CPU"
    )


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """At any time, ``queued`` items are queued or running, as with that many connections with one text each; None: all
    texts arrive at once. The first ``warmup`` texts are computed before the clock starts; None is a tenth, at most 200.
    """

    command_line_only: ClassVar[bool] = True

    queued: int | None = option(
        None, "Texts that are queued or running at a time (default: all).", group=MEASUREMENT, minimum=1, metavar="N"
    )
    warmup: int | None = option(
        None,
        "Texts at the start that are not counted (default: a tenth, at most 200).",
        group=MEASUREMENT,
        minimum=0,
        metavar="N",
    )


@dataclass(frozen=True, slots=True)
class ThroughputCommandOptions:
    """All options of ``launch bench throughput``: instances as ``serve`` starts them, on this machine."""

    serve: ServeOptions = part(
        ServeOptions(log=LogOptions(level="warning")),
        # Without options that have no effect if the queue holds the whole workload and workers are not restarted.
        without=(
            "lengths",
            "sysroot",
            "machine",
            HTTP,
            ACCESS,
            CONNECTIONS,
            LIMITS,
            "on_machine_change",
            "replan_seconds",
            "max_queue_items",
            "max_queue_seconds",
            "interactive_share",
            "bulk_batch_seconds",
            "max_attempts",
            "quarantine_seconds",
            "max_failures",
            "backoff_seconds",
            "backoff_limit_seconds",
            "settled_seconds",
        ),
    )
    throughput: ThroughputOptions = part(ThroughputOptions())
    workload: WorkloadOptions = part(WorkloadOptions())
