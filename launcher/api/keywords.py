"""The keyword arguments of engines, for type checkers and editors. Made by ``scripts/docs``; do not edit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict


class EngineKeywords(TypedDict, total=False):
    """The options of ``launch serve`` that the Python API supports, under the same names."""

    instances: int | Literal["auto"] | None
    """Number of instances. Default: auto."""

    cores_per_instance: int | None
    """Physical cores per instance. Default: None."""

    classes: str | None
    """Length classes as TOKENS:CORES, e.g. 32:8,384:16,max:24; auto simulates plans. Default: None."""

    lengths: str | Path | None
    """Length histogram for --classes auto and predictions; lines of "tokens count". Default: None."""

    reserve_cores: int | Literal["auto"] | None
    """Cores reserved for the front. Default: auto."""

    oversubscribe: bool
    """Allow more instances than cores. Default: False."""

    mix_kinds: bool
    """Allow performance and efficiency cores in one instance. Default: False."""

    strict: bool
    """Fail if an instance cannot be bound exactly as planned. Default: False."""

    shared_cores: bool
    """Also use cores that other launchers have claimed. Default: False."""

    name: str | None
    """Name for launch ps and launch stop (default: from model and port). Default: None."""

    isolated: Literal["auto", "use", "avoid"]
    """Whether to use isolated cpus (isolcpus); auto uses them if no others are allowed. Default: auto."""

    probe_seconds: float
    """Timeout of each binding probe. Default: 20.0."""

    allocator: Literal["auto", "tcmalloc", "jemalloc", "system"]
    """Memory allocator to preload; auto picks tcmalloc or jemalloc. Default: auto."""

    openmp: Literal["auto", "intel", "gnu"]
    """OpenMP runtime; auto and gnu use the one that torch ships. Default: auto."""

    task: str
    """Task to serve; auto reads it from the model; module:Class is a custom class. Default: auto."""

    max_length: int | None
    """Maximum input length in tokens; at most the model's own limit. Default: None."""

    trust_remote_code: bool
    """Run Python code shipped with the model. Default: False."""

    hub_seconds: float
    """Timeout of each response of the model hub. Default: 10.0."""

    dtype: Literal["auto", "bf16", "fp32", "int8"]
    """Data type; auto is bf16 if the CPU supports it; int8 is faster and less accurate. Default: auto."""

    backend: Literal["eager", "compile", "fake"]
    """Execution backend; compile takes 10 to 20 s longer to start; fake computes nothing. Default: eager."""

    layout: Literal["auto", "sorted", "fifo"]
    """Batch layout; auto packs if possible, sorted pads by length, fifo pads in arrival order. Default: auto."""

    measure: bool
    """Measure batch costs again instead of using cached ones. Default: False."""

    fake_seconds_per_token: float | None
    """Time per token of --backend fake. Default: None."""

    drain_seconds: float
    """Graceful shutdown timeout for admitted requests. Default: 30.0."""

    tokenizer_threads: int
    """Threads that tokenize long texts. Default: 2."""

    max_text_characters: int
    """Maximum length of a text before it is tokenized. Default: 1000000."""

    max_queue_seconds: float
    """Maximum predicted time of the queued work of a client. Default: 300.0."""

    max_queue_items: int
    """Maximum number of queued and running inputs of a client. Default: 16384."""

    batch_tokens: int
    """Token budget of a batch, padding included. Default: 2048."""

    interactive_share: float
    """Share of the queue that bulk requests cannot take. Default: 0.25."""

    bulk_batch_seconds: float
    """Predicted duration limit of a bulk batch. Default: 0.05."""

    hang_factor: float
    """A batch that takes this many times longer than predicted is overdue. Default: 5.0."""

    hang_seconds: float
    """Minimum duration before a batch is overdue; a worker that uses no CPU time is then replaced. Default: 1.0."""

    busy_hang_seconds: float
    """Minimum duration of a batch before a worker that uses CPU time is replaced. Default: 30.0."""

    max_attempts: int
    """Number of attempts to compute an input, each on another worker. Default: 2."""

    quarantine_seconds: float
    """How long to refuse an input with which two workers were lost; 0 disables this. Default: 3600.0."""

    start_seconds: float
    """Time for a worker to become ready. Default: 600.0."""

    stop_seconds: float
    """Time for a worker to exit after the drain, before SIGKILL. Default: 5.0."""

    max_failures: int
    """Consecutive failures after which an instance is not restarted. Default: 5."""

    backoff_seconds: float
    """Delay before the first restart; doubles with each failure. Default: 0.5."""

    backoff_limit_seconds: float
    """Maximum delay before a restart. Default: 30.0."""

    settled_seconds: float
    """Time after which earlier failures no longer count. Default: 60.0."""
