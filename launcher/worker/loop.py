"""The main loop of a worker: set up, load, warm up, then run one batch at a time until ``Stop`` or EOF.

It knows the messages and the ``Backend`` protocol, and must not import torch. One thread and no queue: while a batch
runs, the next one waits in the socket buffer.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from launcher.core.protocol.frames import FrameError
from launcher.core.protocol.messages import (
    Done,
    Failed,
    Loading,
    LoadStage,
    Probe,
    Ready,
    Run,
    Setup,
    Stop,
    Unusable,
)
from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends.create_backend import create_backend
from launcher.worker.channel import Channel, ChannelClosed
from launcher.worker.interfaces import (
    Backend,
    BatchOutput,
    ItemBatch,
    ModelError,
    ReportProgress,
    TokenIds,
    one_line,
)
from launcher.worker.warmup import run_warmup

EXIT_UNUSABLE = 4
EXIT_BROKEN_CHANNEL = 6

TOKEN_BYTES = 4


class BatchError(Exception):
    """A ``Run`` that does not match its body or the model, or results that must not be returned."""


def work(connection: socket.socket, instance: int, threads: int) -> int:
    """Serve one channel until its end; returns the exit status (see ``__main__``)."""
    channel = Channel(connection)
    try:
        first = channel.receive()
        if first is None:
            return 0
        setup, _ = first
        if not isinstance(setup, Setup):
            raise FrameError(f"expected Setup as the first message, got {type(setup).__name__}")
        backend = _start(channel, setup, threads)
        if backend is None:
            return EXIT_UNUSABLE
        return run_batches(channel, backend, setup.model_info)
    except FrameError as error:
        _log(f"instance {instance}: protocol error on the channel: {error}")
        return EXIT_BROKEN_CHANNEL
    except ChannelClosed:
        return 0


def _start(channel: Channel, setup: Setup, threads: int) -> Backend | None:
    """A backend that is warm, after sending ``Ready``; None after sending ``Unusable``."""

    def report(stage: LoadStage, done: float, detail: str) -> None:
        channel.send(Loading(stage, done, detail))

    try:
        backend, ready = _load(setup, threads, report)
    except ChannelClosed:
        raise
    except ModelError as error:
        channel.send(Unusable(str(error)))
        return None
    except Exception as error:
        traceback.print_exc()
        channel.send(Unusable(f"{setup.model_info.requested} cannot be loaded: {one_line(error)}"))
        return None
    # The objects of the model live as long as the process. Freezing them keeps the garbage collector from traversing
    # hundreds of thousands of objects in the middle of a batch.
    gc.collect()
    gc.freeze()
    channel.send(ready)
    return backend


def _load(setup: Setup, threads: int, report: ReportProgress) -> tuple[Backend, Ready]:
    start = time.perf_counter()
    report("import", 0.0, setup.backend)
    # Importing torch and transformers makes a million objects that live as long as the process: looking for garbage
    # among them again and again takes a quarter of the time.
    gc.disable()
    try:
        backend = create_backend(setup, threads)
        gc.freeze()
    finally:
        gc.enable()
    report("import", 1.0, setup.backend)
    loaded = backend.load(report)
    warmup_start = time.perf_counter()
    # Costs of padded batches say nothing about packed ones, and vice versa.
    cached = bool(setup.known) and setup.known_packed == loaded.packed
    batches = [*((width,) * rows for rows, width in setup.warmup), *setup.mixed]
    if cached and setup.proof is not None:
        batches = _few(batches)
    measured = run_warmup(backend, setup.model_info, batches, report, packed=loaded.packed, measure=not cached)
    return backend, Ready(
        pid=os.getpid(),
        threads=loaded.threads,
        dtype=setup.dtype,
        backend=setup.backend,
        width=setup.model_info.result_width,
        labels=setup.model_info.labels,
        torch_version=loaded.torch_version,
        load_seconds=warmup_start - start,
        warmup_seconds=time.perf_counter() - warmup_start,
        measured=setup.known if cached else measured,
        accuracy=loaded.accuracy,
        notes=loaded.notes,
        packed=loaded.packed,
        cached=cached,
        proof=loaded.proof,
    )


def _few(batches: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The two smallest batches, which pay for what libraries do only once. A restarted worker leaves what they do for
    each shape to the first requests, because all requests wait for it if it is the only one."""
    return sorted(batches, key=sum)[:2]


def run_batches(channel: Channel, backend: Backend, model_info: ModelInfo) -> int:
    """Run batches until ``Stop`` or EOF; returns the exit status. Raises ``FrameError``."""
    while (received := channel.receive()) is not None:
        message, body = received
        if isinstance(message, Stop):
            return 0
        if isinstance(message, Probe):
            _run_probe(channel, backend, model_info, message)
        elif isinstance(message, Run):
            _run_batch(channel, backend, model_info, message, body)
        else:
            raise FrameError(f"expected Run, Probe or Stop after Ready, got {type(message).__name__}")
    return 0


def _run_probe(channel: Channel, backend: Backend, model_info: ModelInfo, probe: Probe) -> None:
    start = time.perf_counter()
    try:
        output = backend.run(backend.sample_batch((1,)))
    except Exception as error:
        traceback.print_exc()
        channel.send(Failed(probe.batch, one_line(error)))
    else:
        seconds = time.perf_counter() - start
        channel.send(Done(probe.batch, 0, model_info.result_width, seconds, output.computed_tokens))


def _run_batch(channel: Channel, backend: Backend, model_info: ModelInfo, run: Run, body: bytes) -> None:
    start = time.perf_counter()
    try:
        output = backend.run(checked_batch(run, body, model_info))
        check_output(output, run, model_info)
    except BatchError as error:
        channel.send(Failed(run.batch, str(error)))
    except Exception as error:  # one bad batch must not affect the next
        traceback.print_exc()
        channel.send(Failed(run.batch, one_line(error)))
    else:
        values = np.ascontiguousarray(output.values)
        seconds = time.perf_counter() - start
        done = Done(run.batch, len(run.lengths), values.shape[1], seconds, output.computed_tokens, tuple(output.rows))
        channel.send(done, values.data)


def checked_batch(run: Run, body: bytes, model_info: ModelInfo) -> ItemBatch:
    """The items of a batch, as views of ``body``. Raises ``BatchError`` if they do not match ``run`` or the model."""
    if not run.lengths or run.lengths[-1] < 1 or any(a < b for a, b in zip(run.lengths, run.lengths[1:], strict=False)):
        raise BatchError(f"lengths must be positive and in descending order, got {_abbreviate(run.lengths)}")
    if run.lengths[0] > model_info.max_length:
        raise BatchError(f"an item has {run.lengths[0]} tokens; the model accepts at most {model_info.max_length}")
    if model_info.task == "custom":
        return _custom_batch(run, body)
    tokens = sum(run.lengths)
    expected = (TOKEN_BYTES + run.typed) * tokens
    if len(body) != expected:
        raise BatchError(f"expected {expected} bytes of token ids for {tokens} tokens, got {len(body)}")
    ids: TokenIds = np.frombuffer(body, dtype="<i4", count=tokens)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model_info.vocab_size:
        raise BatchError(
            f"token id {low if low < 0 else high} is out of range; it must be from 0 to {model_info.vocab_size - 1}"
        )
    type_ids = np.frombuffer(body, dtype=np.uint8, offset=TOKEN_BYTES * tokens) if run.typed else None
    if type_ids is not None and int(type_ids.max()) >= model_info.token_types:
        raise BatchError(f"token type {type_ids.max()} is out of range; the model has {model_info.token_types}")
    return ItemBatch(ids, run.lengths, type_ids, run.prompt_lengths, routes=run.routes)


def _custom_batch(run: Run, body: bytes) -> ItemBatch:
    """The items of a batch for a custom task. Raises ``BatchError`` if they do not match ``run``."""
    if len(run.payload_bytes) != len(run.lengths) or min(run.payload_bytes) < 0 or sum(run.payload_bytes) != len(body):
        raise BatchError(f"expected {len(run.lengths)} items in {len(body)} bytes, got sizes of {run.payload_bytes}")
    ends = accumulate(run.payload_bytes, initial=0)
    payloads = [body[start:end] for start, end in pairwise(ends)]
    return ItemBatch(np.empty(0, np.int32), run.lengths, payloads=payloads)


def check_output(output: BatchOutput, run: Run, model_info: ModelInfo) -> None:
    """Raise ``BatchError`` if results are missing or not finite: they must not be returned to a client."""
    values, counts = output.values, _row_counts(output, run, model_info)
    expected = (sum(counts), model_info.result_width)
    if len(counts) != len(run.lengths) or values.shape != expected:
        raise BatchError(f"expected results of shape {expected} from the model, got {values.shape}")
    if not np.isfinite(values).all():
        items = np.split(values, np.cumsum(counts)[:-1])
        broken = [index for index, item in enumerate(items) if not np.isfinite(item).all()]
        first = broken[0]
        raise BatchError(
            f"the results have NaN or infinite values for {len(broken)} of {len(items)} items, "
            f"the first is item {first} with {run.lengths[first]} tokens"
        )


def _row_counts(output: BatchOutput, run: Run, model_info: ModelInfo) -> Sequence[int]:
    """The number of rows that the result of each item must have."""
    if model_info.rows in ("varying", "bytes"):
        return output.rows
    return run.lengths if model_info.rows == "token" else [1] * len(run.lengths)


def _abbreviate(lengths: tuple[int, ...]) -> str:
    return str(list(lengths[:8]))[:-1] + (", …]" if len(lengths) > 8 else "]")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
