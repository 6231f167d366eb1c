"""Carries out the scheduler's decisions: sends batches to workers, assembles results, and completes requests.

This is the I/O shell around ``core.scheduling.scheduler``: it owns the sockets, the clock, the single timer and the
futures, and leaves every decision to the scheduler. Messages of workers are checked against what was sent to them; a
worker that violates the protocol is dropped. HTTP and starting processes do not belong here.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from launcher.core.protocol.messages import Done, Failed, Loading, Probe, Ready, Run, Setup, Stop, ToFront, Unusable
from launcher.core.protocol.model_info import Rows
from launcher.core.scheduling.batching import Item
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    BatchFailed,
    Cancelled,
    ChangeEnded,
    ChangeStarted,
    DrainStarted,
    Event,
    Finish,
    InspectWorker,
    InstanceAdded,
    InstanceLost,
    InstanceReady,
    InstanceRemoved,
    InstanceRetiring,
    InstanceSpec,
    NoInstancesLeft,
    Priority,
    ProbeRequested,
    Reject,
    ReplaceWorker,
    Scheduler,
    Send,
    WorkerActivity,
)
from launcher.errors import RequestError
from launcher.front.channel import CLOSED, Channel
from launcher.front.item_details import ItemDetails, Tokens, with_details
from launcher.front.metrics import FrontMetrics, InstanceMetrics
from launcher.front.quarantine import Loss, Quarantine
from launcher.front.request_results import DTYPES, RequestResults, Vectors, make_results

# uvloop's timers have a resolution of 1 ms; a deadline this close counts as reached.
TIMER_RESOLUTION = 1e-3


class Listener(Protocol):
    """Is notified of the state of the workers. No method may block."""

    def loading(self, instance: int, message: Loading) -> None:
        """The worker is starting."""

    def ready(self, instance: int, message: Ready) -> None:
        """The worker is warmed up and accepts batches from now on."""

    def unusable(self, instance: int, reason: str) -> None:
        """The worker reports that its model cannot be served and that a restart would not help."""

    def overdue(self, instance: int, batch: int) -> None:
        """The worker is far later with this batch than predicted: inspect its process, and report what it does with
        ``Dispatcher.inspected``."""

    def lost(self, instance: int, reason: str) -> None:
        """The channel is closed. The process may still be alive (it hangs, or sent invalid data) and must be killed."""


@dataclass(slots=True)  # not frozen, which makes an instance take half a microsecond longer
class Outcome:
    """The results of one request: float32 of shape (items, width) in the order of the request, or (tokens, width) if
    items have one row per token.

    ``rows`` is the number of rows of each item if that varies, and empty otherwise.
    ``queue_seconds`` is the time until its first batch started, ``compute_seconds`` the time from then until its last
    batch was done; ``instances`` are the instances that computed it.
    """

    results: Vectors
    queue_seconds: float
    compute_seconds: float
    instances: tuple[int, ...]
    rows: tuple[int, ...] = ()


@dataclass(slots=True)
class _Request:
    items: Sequence[Tokens]
    details: ItemDetails | None
    results: RequestResults
    future: asyncio.Future[Outcome]
    arrived: float
    began: float = math.inf
    instances: tuple[int, ...] = ()


@dataclass(slots=True)
class _Sent:
    batch: int
    items: tuple[Item, ...]
    tokens: int
    contents: Sequence[Tokens]
    computed: set[Item] | None = None  # by another worker since this one is late


class _Worker:
    """The state of one worker: its channel, and the batches that were sent to it and not answered yet.

    ``standby``: it gets no batches before ``Dispatcher.admit``; ``announced`` is then what it said when it was ready.
    ``finished`` is set while its instance retires: a future of the end of its batches.
    """

    __slots__ = (
        "announced",
        "channel",
        "finished",
        "instance",
        "metrics",
        "ready",
        "sent",
        "standby",
        "stopping",
        "waiters",
    )

    def __init__(self, instance: int, metrics: InstanceMetrics, dispatcher: Dispatcher, standby: bool) -> None:
        self.instance = instance
        self.standby = standby
        self.announced: InstanceReady | None = None
        self.finished: asyncio.Future[None] | None = None
        self.metrics = metrics
        self.ready = False
        self.stopping = False
        self.sent: deque[_Sent] = deque()
        # Resolved when it finishes a batch (True) or is lost (False).
        self.waiters: list[asyncio.Future[bool]] = []
        self.channel = Channel(partial(dispatcher._received, self), partial(dispatcher._lost, self))


class Dispatcher:
    """See the module docstring. Must only be used from the thread of the running event loop.

    ``width`` is the number of float32 values in a row of results, and ``rows`` tells how many rows an item has.
    ``clock`` returns monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        listener: Listener,
        metrics: FrontMetrics,
        *,
        width: int,
        rows: Rows = "item",
        quarantine: Quarantine | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._listener = listener
        self._metrics = metrics
        self._width = width
        self._rows: Rows = rows
        self._clock = clock
        self._now = clock()
        self.draining = False
        self.quarantine = Quarantine("", 0.0) if quarantine is None else quarantine
        # The number of items of each length, including rejected ones; bounded by the model's limit.
        self.lengths: Counter[int] = Counter()
        self._workers: dict[int, _Worker] = {}
        self._requests: dict[int, _Request] = {}
        self._next_request = 1
        # Instances whose batch is, or was, overdue since their worker started.
        self._late: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._empty: list[asyncio.Future[None]] = []

    # ----------------------------------------------------------------- workers

    async def attach(self, instance: int, sock: socket.socket, setup: Setup, *, standby: bool = False) -> None:
        """Take ownership of ``sock``, a Unix stream socket connected to the worker of ``instance``; send ``setup``.

        With ``standby`` it gets no batches before ``admit``; otherwise the scheduler must know the instance.
        """
        if instance in self._workers:
            raise ValueError(f"instance {instance} has a worker already")
        worker = self._workers[instance] = _Worker(instance, self._metrics.instances[instance], self, standby)
        try:
            await worker.channel.connect(sock)
        except BaseException:
            self._workers.pop(instance, None)
            raise
        worker.metrics.attached()
        worker.channel.send(setup)

    def admit(self, spec: InstanceSpec, drift: float) -> None:
        """Add an instance whose worker is on standby. ``drift`` as in ``Scheduler.set_initial_drift``."""
        self._feed(InstanceAdded(spec))
        self._scheduler.set_initial_drift(spec.id, drift)
        worker = self._workers.get(spec.id)
        if worker is not None:
            worker.standby = False
            if worker.announced is not None:
                self._feed(worker.announced)

    async def retire(self, instance: int) -> None:
        """Give no more batches to an instance, wait until it has finished those that it has, and tell its worker to
        stop. An instance that hangs is lost after the usual time, and its batches are computed by another one."""
        if self._scheduler.knows(instance):
            self._feed(InstanceRetiring(instance))
        worker = self._workers.get(instance)
        if worker is None:
            return
        worker.finished = asyncio.get_running_loop().create_future()
        self._check_finished(worker)
        await worker.finished
        worker.stopping = True
        worker.channel.send(Stop())

    def process_ended(self, instance: int) -> None:
        """The process of the worker is gone: its channel is lost, even if a child of that process keeps it open."""
        worker = self._workers.get(instance)
        if worker is not None:
            worker.channel.fail(CLOSED)
            self._lost(worker, CLOSED)

    def remove(self, instance: int) -> None:
        """Forget an instance whose worker has exited."""
        worker = self._workers.pop(instance, None)
        if worker is not None:
            worker.channel.fail("the instance was removed")
            worker.metrics.stopped()
            _resolve(worker, False)
            self._late.discard(instance)
        if self._scheduler.knows(instance):
            self._feed(InstanceRemoved(instance))

    def change_started(self) -> None:
        """From now on requests are admitted even if no instance is ready: instances are being replaced."""
        self._feed(ChangeStarted())

    def change_ended(self) -> None:
        """No more instances are replaced."""
        self._feed(ChangeEnded())

    def stop_workers(self) -> None:
        """Tell every worker to finish its batches and exit."""
        for worker in self._workers.values():
            worker.stopping = True
            worker.channel.send(Stop())

    async def finishes_batch(self, instance: int, seconds: float) -> bool:
        """Whether the worker of an instance finishes a batch within ``seconds``. If it is idle, it is sent a probe."""
        worker = self._workers.get(instance)
        if worker is None or not worker.ready:
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        worker.waiters.append(waiter)
        self._feed(ProbeRequested(instance))
        try:
            return await asyncio.wait_for(waiter, seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            if waiter in worker.waiters:
                worker.waiters.remove(waiter)

    def inspected(self, activity: WorkerActivity) -> None:
        """What the worker of an overdue batch does; ignored if the batch is finished."""
        if activity.instance in self._workers:
            self._feed(activity)

    def no_instances_left(self, reason: str) -> None:
        """No instance is left and none will be restarted: answer all waiting and all future requests with 503."""
        self._feed(NoInstancesLeft(reason))

    def _received(self, worker: _Worker, message: ToFront, body: bytes) -> None:
        match message:
            case Done():
                self._done(worker, message, body)
                if worker.waiters:
                    _resolve(worker, worker.channel.open)
                if worker.finished is not None:
                    self._check_finished(worker)
            case Failed():
                self._failed(worker, message)
                if worker.waiters:
                    _resolve(worker, False)
                if worker.finished is not None:
                    self._check_finished(worker)
            case _ if worker.ready:
                worker.channel.fail(f"the worker sent {type(message).__name__} after it was ready")
            case Loading():
                self._listener.loading(worker.instance, message)
            case Ready():
                self._ready(worker, message)
            case Unusable():
                self._listener.unusable(worker.instance, message.reason)

    def _ready(self, worker: _Worker, message: Ready) -> None:
        if message.width != self._width:
            worker.channel.fail(
                f"the worker announced results of {message.width} values, but the model has {self._width}"
            )
            return
        worker.ready = True
        worker.metrics.ready()
        worker.announced = InstanceReady(worker.instance, message.measured, message.packed)
        self._listener.ready(worker.instance, message)
        if not worker.standby:
            self._feed(worker.announced)

    def _done(self, worker: _Worker, message: Done, body: bytes) -> None:
        sent = worker.sent[0] if worker.sent else None
        mismatch = _mismatch(sent, message, len(body), self._width, self._rows)
        if sent is None or mismatch:  # the batch stays: it is the one that the worker is lost with
            worker.channel.fail(f"the worker's results do not match the batch it was sent: {mismatch}")
            return
        worker.sent.popleft()
        if not sent.items:  # a probe
            self._feed(BatchDone(worker.instance, sent.batch, message.seconds))
            return
        rows = np.frombuffer(body, dtype=DTYPES[self._rows]).reshape(-1, message.width)
        if not np.isfinite(rows).all():
            worker.metrics.batch_failed()
            self._feed(BatchFailed(worker.instance, sent.batch, "the results contain values that are not finite"))
            return
        worker.metrics.batch_done(message.items, sent.tokens, message.computed_tokens, message.seconds)
        self._store_results(worker.instance, sent.items, self._by_item(rows, sent, message), message.seconds)
        if self.quarantine:
            self.quarantine.clear_computed(sent.contents)
        if self._late:
            self._note_computed(worker.instance, sent)
        self._feed(BatchDone(worker.instance, sent.batch, message.seconds))

    def _check_finished(self, worker: _Worker) -> None:
        """Tell a retiring worker's waiter if it has no batch left whose results are wanted."""
        if worker.finished is None or worker.finished.done():
            return
        # A ready batch that was withdrawn from a late worker is computed elsewhere, and nobody would notice a hang.
        withdrawn = self._scheduler.knows(worker.instance) and self._scheduler.ages(worker.instance, 0.0)[1] is None
        if withdrawn or not worker.sent:
            worker.finished.set_result(None)

    def _note_computed(self, own: int, sent: _Sent) -> None:
        """Note that items in the running batch of a late worker are computed: they are not to blame if it is lost."""
        self._late.discard(own)
        for instance in self._late:
            worker = self._workers.get(instance)
            if worker is not None and worker.sent:
                late = worker.sent[0]
                # Only its own items: others may compute any number while it is late.
                late.computed = (late.computed or set()).union(set(late.items).intersection(sent.items))

    def _blame(self, worker: _Worker, reason: str) -> tuple[int, ...]:
        """The running batch of a lost worker may be the cause. Returns the requests that fail because one of their
        inputs is quarantined now."""
        if not worker.sent or worker.stopping:
            return ()
        sent, now = worker.sent[0], self._clock()
        computed = sent.computed or ()
        items = [c for item, c in zip(sent.items, sent.contents, strict=True) if item not in computed]
        if not self.quarantine.blame(items, Loss(worker.instance, reason, now)):
            return ()
        failed = []
        for request_id, request in list(self._requests.items()):
            refusal, _ = self.quarantine.check(request.items, now)
            if refusal is not None:
                failed.append(request_id)
                self._close(request_id)
                if not request.future.done():
                    said = f"instance {worker.instance} was lost while computing an input; {refusal}"
                    request.future.set_exception(RequestError(said, status=500, code="instance_failed"))
        return tuple(failed)

    def _by_item(self, rows: Vectors, sent: _Sent, done: Done) -> Iterable[Vectors]:
        """The rows of each item of a batch."""
        if self._rows == "item":
            return rows
        counts = done.rows or [item.length for item in sent.items]
        return np.split(rows, list(accumulate(counts))[:-1])

    def _store_results(
        self, instance: int, items: tuple[Item, ...], results: Iterable[Vectors], seconds: float
    ) -> None:
        """Write each item's rows to the results of its request, unless the request is gone."""
        began = self._clock() - seconds
        for result, item in zip(results, items, strict=True):
            request = self._requests.get(item.request)
            if request is None:
                continue
            request.results.put(item.index, result)
            request.began = min(request.began, began)
            if instance not in request.instances:
                request.instances += (instance,)

    def _failed(self, worker: _Worker, message: Failed) -> None:
        sent = worker.sent[0] if worker.sent else None
        if sent is None or sent.batch != message.batch:
            expected = f"batch {sent.batch} was expected" if sent else "none was expected"
            worker.channel.fail(f"the worker reported that batch {message.batch} failed, but {expected}")
            return
        worker.sent.popleft()
        worker.metrics.batch_failed()
        self._feed(BatchFailed(worker.instance, message.batch, message.reason))

    def _lost(self, worker: _Worker, reason: str) -> None:
        if self._workers.get(worker.instance) is not worker:  # removed
            return
        del self._workers[worker.instance]
        if worker.stopping:
            worker.metrics.stopped()
        else:
            worker.metrics.lost()
        _resolve(worker, False)
        self._late.discard(worker.instance)
        failed = self._blame(worker, reason)
        if worker.ready and not worker.standby:
            self._feed(InstanceLost(worker.instance, failed))
        worker.sent.clear()
        self._check_finished(worker)
        self._listener.lost(worker.instance, "stopped as requested" if worker.stopping else reason)

    # ---------------------------------------------------------------- requests

    @property
    def in_flight(self) -> int:
        """The number of requests admitted and not yet answered."""
        return len(self._requests)

    def enqueue(
        self,
        items: Sequence[Tokens],
        *,
        details: ItemDetails | None = None,
        priority: Priority = "interactive",
        deadline: float | None = None,
        max_rows: int | None = None,
        client: str = "",
    ) -> asyncio.Future[Outcome]:
        """Submit ``items`` (token ids, including special tokens); returns a future of the results or a
        ``RequestError``.

        ``deadline`` is a time on the dispatcher's clock: a request that cannot be finished by then, or is still queued
        then, is rejected. ``client`` shares the instances with other clients. If the results have more than
        ``max_rows`` rows and their number varies, only the numbers are kept. Cancelling the future (or a task that
        awaits it) cancels the items not computed yet.
        """
        request_id = self._next_request
        self._next_request += 1
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        lengths = tuple(details.sizes if details and details.sizes else map(len, items))
        self._requests[request_id] = _Request(
            items, details, make_results(self._rows, lengths, self._width, max_rows), future, self._clock()
        )
        future.add_done_callback(lambda done: self._on_future_done(request_id, done))
        for length in lengths:
            self.lengths[length] += 1
        suspects: tuple[int, ...] = ()
        if self.quarantine:
            refusal, suspects = self.quarantine.check(items, self._clock())
            if refusal is not None:
                self._close(request_id)
                future.set_exception(RequestError(refusal, status=422, code="input_quarantined"))
                return future
        try:
            self._feed(Arrived(request_id, lengths, priority, deadline, client, suspects))
        except BaseException:
            self._close(request_id)
            raise
        return future

    def now(self) -> float:
        """The current time, on the clock of the deadlines."""
        return self._clock()

    def check_admission(self, count: int, *, client: str = "", priority: Priority = "interactive") -> None:
        """Raise the ``RequestError`` with which a request of ``count`` items would be rejected now, if any."""
        self._now = max(self._now, self._clock())
        if rejection := self._scheduler.check_admission(count, self._now, client=client, priority=priority):
            raise _error(rejection)

    def hold(self, count: int, *, client: str = "", priority: Priority = "interactive") -> None:
        """Count ``count`` items of a client as queued, until ``release``. Raises ``RequestError`` as
        ``check_admission`` does."""
        self.check_admission(count, client=client, priority=priority)
        self._scheduler.hold(count, client)

    def release(self, count: int, *, client: str = "") -> None:
        """The items counted by ``hold`` are enqueued next, or never will be."""
        self._scheduler.release(count, client)

    def begin_drain(self) -> None:
        """Stop admitting requests."""
        self.draining = True
        self._feed(DrainStarted())

    async def drained(self) -> None:
        """Return when all admitted requests are answered."""
        while self._requests:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._empty.append(waiter)
            await waiter

    def _on_future_done(self, request_id: int, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled() and self._close(request_id) is not None:
            self._feed(Cancelled(request_id))

    def _close(self, request_id: int) -> _Request | None:
        request = self._requests.pop(request_id, None)
        if not self._requests and self._empty:
            for waiter in self._empty:
                if not waiter.done():
                    waiter.set_result(None)
            self._empty.clear()
        return request

    # ----------------------------------------------------------------- actions

    def _feed(self, event: Event) -> None:
        self._now = max(self._now, self._clock())
        self._carry_out(self._scheduler.handle(event, self._now))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(action)
                case Finish():
                    self._finish(action.request)
                case Reject():
                    self._reject(action)
                case InspectWorker():
                    self._late.add(action.instance)
                    self._listener.overdue(action.instance, action.batch)
                case ReplaceWorker():
                    self._workers[action.instance].channel.fail(action.reason)
        self._arm()

    def _send(self, action: Send) -> None:
        worker = self._workers[action.instance]
        lengths = tuple([item.length for item in action.items])
        if not lengths:
            worker.sent.append(_Sent(action.batch, (), 0, ()))
            worker.channel.send(Probe(action.batch))
            return
        # An array is a buffer, which `join` accepts; typeshed cannot express that before Python 3.12.
        parts: list[Any] = []
        detailed = False
        for item in action.items:
            request = self._requests[item.request]
            parts.append(request.items[item.index])
            detailed = detailed or request.details is not None
        worker.sent.append(_Sent(action.batch, action.items, sum(lengths), parts))
        run = Run(action.batch, lengths)
        if detailed:
            parts = parts.copy()  # token types are appended
            details = [(self._requests[item.request].details, item.index) for item in action.items]
            run = with_details(run, details, parts)
        worker.channel.send(run, b"".join(parts))

    def _finish(self, request_id: int) -> None:
        request = self._close(request_id)
        if request is not None and not request.future.done():
            now = self._clock()
            began = min(max(request.began, request.arrived), now)
            values, rows = request.results.outcome()
            request.future.set_result(Outcome(values, began - request.arrived, now - began, request.instances, rows))

    def _reject(self, action: Reject) -> None:
        request = self._close(action.request)
        if request is not None and not request.future.done():
            request.future.set_exception(_error(action))

    # ------------------------------------------------------------------- timer

    def _arm(self) -> None:
        """Set the timer for the scheduler's next deadline. An earlier timer is kept: that is cheaper than a new one."""
        deadline = self._scheduler.next_deadline()
        if deadline is None or deadline >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay = deadline - self._clock()
        # A deadline that remains in the past must not cause a busy loop.
        delay = delay if delay > 0 else TIMER_RESOLUTION
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._now = max(self._now, self._clock())
        deadline = self._scheduler.next_deadline()
        if deadline is not None and self._now < deadline <= self._now + TIMER_RESOLUTION:
            self._now = deadline
        self._carry_out(self._scheduler.tick(self._now))


def _resolve(worker: _Worker, finished: bool) -> None:
    for waiter in worker.waiters:
        if not waiter.done():
            waiter.set_result(finished)
    worker.waiters.clear()


def _error(rejection: Reject) -> RequestError:
    return RequestError(
        rejection.reason, status=rejection.status, code=rejection.code, retry_after=rejection.retry_after
    )


def _mismatch(sent: _Sent | None, done: Done, body_bytes: int, width: int, rows: Rows) -> str | None:
    """How a result contradicts the batch that was sent; None if it does not."""
    if sent is None:
        return f"batch {done.batch} arrived, none was expected"
    if done.batch != sent.batch:
        return f"batch {done.batch} arrived, batch {sent.batch} was expected"
    if done.items != len(sent.items):
        return f"{done.items} results for {len(sent.items)} items"
    if not 0 <= done.seconds < math.inf or done.computed_tokens < sent.tokens:
        return f"{done.seconds} s for {done.computed_tokens} computed tokens, {sent.tokens} were sent"
    if done.width != width:
        return f"{done.width} values in a row instead of {width}"
    if len(done.rows) != (done.items if rows in ("varying", "bytes") else 0) or any(count < 0 for count in done.rows):
        return f"numbers of rows {done.rows} for {done.items} items"
    total = {"item": done.items, "token": sent.tokens}.get(rows, sum(done.rows))
    expected = total * width * np.dtype(DTYPES[rows]).itemsize
    if body_bytes != expected:
        return f"{body_bytes} bytes of results instead of {expected}"
    return None
