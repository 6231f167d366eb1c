"""The life of a worker: setup, load, warm-up, then batch after batch until ``Stop`` or the end of the channel.

It knows messages and any backend, no torch. One thread, no queue of its own: while a batch runs the next one waits in
the socket's buffer.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import traceback

import numpy as np

from launcher.core.protocol.frames import FrameError
from launcher.core.protocol.messages import Done, Failed, Loading, Ready, Run, Setup, Stop, Unusable
from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends import Backend, Ids, ModelRefused, Report, Stage, Values
from launcher.worker.backends.create import create
from launcher.worker.channel import Channel, ChannelClosed
from launcher.worker.warmup import warm_up

EXIT_UNUSABLE = 4
EXIT_BROKEN_CHANNEL = 6

REASON_CHARACTERS = 400


class BadBatch(Exception):
    """A ``Run`` that does not fit its body or the model, or a result that must not be answered."""


def work(connection: socket.socket, instance: int, threads: int) -> int:
    """Serve one channel to its end and return the exit status (see ``__main__``)."""
    channel = Channel(connection)
    try:
        first = channel.receive()
        if first is None:
            return 0
        setup, _ = first
        if not isinstance(setup, Setup):
            raise FrameError(f"the first message is {type(setup).__name__}, not Setup")
        backend = _start(channel, setup, threads)
        if backend is None:
            return EXIT_UNUSABLE
        return run_batches(channel, backend, setup.model_info)
    except FrameError as error:
        _log(f"instance {instance}: the channel is broken: {error}")
        return EXIT_BROKEN_CHANNEL
    except ChannelClosed:
        return 0


def _start(channel: Channel, setup: Setup, threads: int) -> Backend | None:
    """A warm backend, announced with ``Ready``; None after ``Unusable``."""

    def report(stage: Stage, done: float, detail: str) -> None:
        channel.send(Loading(stage, done, detail))

    try:
        backend, ready = _load(setup, threads, report)
    except ChannelClosed:
        raise
    except ModelRefused as error:
        channel.send(Unusable(str(error)))
        return None
    except Exception as error:
        traceback.print_exc()
        channel.send(Unusable(f"{setup.model_info.asked} cannot be loaded: {_one_line(error)}"))
        return None
    # What was made so far stays for good; the collector need not walk a model's hundred thousands of objects
    # in the middle of a batch.
    gc.collect()
    gc.freeze()
    channel.send(ready)
    return backend


def _load(setup: Setup, threads: int, report: Report) -> tuple[Backend, Ready]:
    start = time.perf_counter()
    report("import", 0.0, setup.backend)
    backend = create(setup, threads)
    report("import", 1.0, setup.backend)
    loaded = backend.load(report)
    warm_start = time.perf_counter()
    # What is known of rows says nothing of lines, and the other way round.
    cached = bool(setup.known) and setup.known_packed == loaded.packed
    batches = [*((width,) * rows for rows, width in setup.warmup), *setup.mixed]
    measured = warm_up(backend, setup.model_info, batches, report, packed=loaded.packed, measure=not cached)
    return backend, Ready(
        pid=os.getpid(),
        threads=loaded.threads,
        dtype=setup.dtype,
        backend=setup.backend,
        width=setup.model_info.result_width,
        labels=setup.model_info.labels,
        torch_version=loaded.torch_version,
        load_seconds=warm_start - start,
        warmup_seconds=time.perf_counter() - warm_start,
        measured=setup.known if cached else measured,
        accuracy=loaded.accuracy,
        notes=loaded.notes,
        packed=loaded.packed,
        cached=cached,
    )


def run_batches(channel: Channel, backend: Backend, model_info: ModelInfo) -> int:
    """Run what the front sends until ``Stop`` or the end of the channel; the exit status. Raises ``FrameError``."""
    while (received := channel.receive()) is not None:
        message, body = received
        if isinstance(message, Stop):
            return 0
        if not isinstance(message, Run):
            raise FrameError(f"{type(message).__name__} after Ready, where only Run and Stop may come")
        _run_batch(channel, backend, model_info, message, body)
    return 0


def _run_batch(channel: Channel, backend: Backend, model_info: ModelInfo, run: Run, body: bytes) -> None:
    start = time.perf_counter()
    try:
        ids = checked_ids(run, body, model_info)
        output = backend.run(ids, run.lengths)
        check_values(output.values, run, model_info)
    except BadBatch as error:
        channel.send(Failed(run.batch, str(error)))
    except Exception as error:  # whatever one batch raises, the next one may be fine
        traceback.print_exc()
        channel.send(Failed(run.batch, _one_line(error)))
    else:
        values = np.ascontiguousarray(output.values)
        seconds = time.perf_counter() - start
        done = Done(run.batch, len(run.lengths), values.shape[1], seconds, output.computed_tokens)
        channel.send(done, values.data)


def checked_ids(run: Run, body: bytes, model_info: ModelInfo) -> Ids:
    """The token ids of a batch, as a view of ``body``. Raises ``BadBatch`` when they are not what ``run`` says."""
    if not run.lengths or run.lengths[-1] < 1 or any(a < b for a, b in zip(run.lengths, run.lengths[1:], strict=False)):
        raise BadBatch(f"lengths {_clip(run.lengths)} are not positive and longest first")
    if run.lengths[0] > model_info.max_length:
        raise BadBatch(f"an item of {run.lengths[0]} tokens; the model takes at most {model_info.max_length}")
    if len(body) != 4 * sum(run.lengths):
        raise BadBatch(f"{len(body)} bytes of token ids for {sum(run.lengths)} tokens of 4 bytes")
    ids: Ids = np.frombuffer(body, dtype="<i4")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model_info.vocab_size:
        raise BadBatch(
            f"token id {low if low < 0 else high} is outside the vocabulary, 0 to {model_info.vocab_size - 1}"
        )
    return ids


def check_values(values: Values, run: Run, model_info: ModelInfo) -> None:
    """Raises ``BadBatch`` when results are missing, or not numbers: those must not be answered as if they were."""
    expected = (sum(run.lengths) if model_info.row_per_token else len(run.lengths), model_info.result_width)
    if values.shape != expected:
        raise BadBatch(f"the model gave results of shape {values.shape} where {expected} belong")
    if not np.isfinite(values).all():
        items = np.split(values, np.cumsum(run.lengths)[:-1]) if model_info.row_per_token else values
        broken = [index for index, item in enumerate(items) if not np.isfinite(item).all()]
        first = broken[0]
        raise BadBatch(
            f"the result has NaN or infinite values for {len(broken)} of {len(items)} items, "
            f"the first is item {first} with {run.lengths[first]} tokens"
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:REASON_CHARACTERS] if text else name


def _clip(lengths: tuple[int, ...]) -> str:
    return str(list(lengths[:8]))[:-1] + (", …]" if len(lengths) > 8 else "]")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
