"""Clients share the instances, and the queue: in virtual time, with the predicted durations of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.admission import SMALL_SHARE
from launcher.core.scheduling.batching import IDLE_CLIENTS
from launcher.core.scheduling.client_queue import AGEING
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    Cancelled,
    Finish,
    InstanceReady,
    InstanceSpec,
    Reject,
    Scheduler,
    Send,
)
from tests.scheduling import limits

PER_TOKEN = 1e-4
OVERHEAD = 2e-3
MEASURED = tuple((r, r * w, r * w * w, OVERHEAD + r * w * PER_TOKEN) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])
BATCH = 2048
BATCH_SECONDS = OVERHEAD + BATCH * PER_TOKEN
LARGE = (256,) * 256


@dataclass
class World:
    """A scheduler whose batches take what they are predicted to take. Times are by request."""

    scheduler: Scheduler
    now: float = 0.0
    running: dict[int, list[tuple[Send, float]]] = field(default_factory=dict)  # with the time of their end
    arrived: dict[int, float] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    finished: dict[int, float] = field(default_factory=dict)
    rejected: dict[int, Reject] = field(default_factory=dict)
    clients: dict[int, str] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)  # seconds of work of started batches
    on_finish: Callable[[int], None] = lambda request: None

    def arrive(self, request: int, lengths: Sequence[int], client: str, priority: str = "interactive") -> None:
        self.arrived[request], self.clients[request] = self.now, client
        event = Arrived(request, tuple(lengths), priority, None, client)  # type: ignore[arg-type]
        self._carry_out(self.scheduler.handle(event, self.now))

    def run(self, until: float = math.inf) -> None:
        """Let time pass until nothing runs, or until a time."""
        while True:
            ends = [(batches[0][1], instance) for instance, batches in self.running.items() if batches]
            tick = self.scheduler.next_deadline()
            wake = min(min(ends)[0] if ends else math.inf, math.inf if tick is None else max(tick, self.now))
            if wake > until or wake == math.inf:
                self.now = max(self.now, until if until < math.inf else self.now)
                return
            self.now = wake
            if ends and min(ends)[0] == wake:
                self._end(min(ends)[1])
            else:
                self._carry_out(self.scheduler.tick(self.now))
                after = self.scheduler.next_deadline()
                self.now += 1e-4 if after is not None and after <= self.now else 0.0

    def _end(self, instance: int) -> None:
        send, _ = self.running[instance].pop(0)
        if self.running[instance]:
            self._start(self.running[instance][0][0])
        self._carry_out(self.scheduler.handle(BatchDone(instance, send.batch, send.predicted), self.now))

    def _start(self, send: Send) -> None:
        for item in send.items:
            self.started.setdefault(item.request, self.now)
            client = self.clients[item.request]
            self.served[client] = self.served.get(client, 0.0) + item.length * PER_TOKEN

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                batches = self.running.setdefault(action.instance, [])
                batches.append((action, (batches[-1][1] if batches else self.now) + action.predicted))
                if len(batches) == 1:
                    self._start(action)
            elif isinstance(action, Reject):
                self.rejected[action.request] = action
        for action in actions:
            if isinstance(action, Finish):
                self.finished[action.request] = self.now
                self.on_finish(action.request)

    def waited(self, request: int) -> float:
        """Seconds from the arrival of a request to the start of its first batch."""
        return self.started[request] - self.arrived[request]


def make(
    instances: int = 2,
    *,
    packed: bool = True,
    queue: int = 1_000_000,
    classes: Sequence[LengthClass] = (),
    **more: float,
) -> World:
    specs = [InstanceSpec(id_, 1, classes[id_] if classes else None) for id_ in range(instances)]
    bounds = replace(limits(queue, BATCH), **{"queue_seconds": 1e6, **more})  # type: ignore[arg-type]
    scheduler = Scheduler(specs, bounds)
    for spec in specs:
        assert scheduler.handle(InstanceReady(spec.id, MEASURED, packed), 0.0) == []
    return World(scheduler)


# ----------------------------------------------------------------- the instances


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("clients", [1, 3, 1000])
@pytest.mark.parametrize("large", [1, 4, 8, 50])
def test_a_short_request_waits_at_most_two_batches_whatever_others_have_queued(
    large: int, clients: int, packed: bool
) -> None:
    world = make(packed=packed)
    for request in range(large):
        world.arrive(request, LARGE, f"large {request % clients}")
    asked = []
    for number in range(20):
        world.run(until=0.05 + 0.37 * number)
        asked.append(1000 + number)
        world.arrive(asked[-1], (8,), "short")
    world.scheduler.check()
    unfinished = [request for request in range(large) if request not in world.finished]
    assert unfinished or large == 1, "the queue was not full all the time"
    world.run(until=world.now + 1)
    assert max(world.waited(request) for request in asked) <= 2 * BATCH_SECONDS + 1e-6


@pytest.mark.parametrize("large", [8, 50])
def test_short_requests_of_the_client_that_has_large_ones_queued_are_soon_answered_too(large: int) -> None:
    world = make()
    for request in range(large):
        world.arrive(request, LARGE, "client")
    world.run(until=1.0)
    asked = []
    for number in range(40):
        world.run(until=1.0 + 0.37 * number)
        asked.append(1000 + number)
        world.arrive(asked[-1], (8,), "client")
    world.run(until=world.now + 1)
    assert max(world.waited(request) for request in asked) <= 2 * BATCH_SECONDS + 1e-6


@pytest.mark.parametrize("packed", [True, False])
def test_backlogged_clients_get_the_same_work_whatever_they_send(packed: bool) -> None:
    world = make(packed=packed)
    sizes = {"many short": (8,) * 4000, "few long": (512,) * 200, "mixed": (16, 300) * 300}
    request = 0
    for client, lengths in sizes.items():
        for _ in range(1 if client == "few long" else 4):
            request += 1
            world.arrive(request, lengths, client)
    world.run(until=1.0)
    before = dict(world.served)
    for step in range(3, 12):
        world.run(until=0.5 * step)
        world.scheduler.check()
        got = {client: world.served[client] - before[client] for client in sizes}
        # Each is ahead by at most the batches that run or are ready.
        assert max(got.values()) - min(got.values()) <= 4 * BATCH_SECONDS, got
    assert min(got.values()) > 2.0


def test_a_client_that_was_idle_gets_no_credit() -> None:
    world = make(1)
    world.arrive(1, LARGE, "busy")
    world.run(until=3.0)
    world.served.clear()
    world.arrive(2, LARGE, "late")
    world.run(until=5.0)
    assert abs(world.served["busy"] - world.served["late"]) <= 3 * BATCH_SECONDS


def test_a_client_cannot_gain_by_leaving_the_queue_for_a_moment() -> None:
    world = make(1)
    world.arrive(1, LARGE * 4, "steady")
    world.on_finish = lambda request: world.arrive(request + 1, (256,) * 7, "in and out") if request > 1 else None
    world.arrive(2, (256,) * 7, "in and out")
    world.run(until=10.0)
    assert world.served["in and out"] <= world.served["steady"] + 3 * BATCH_SECONDS


def test_a_large_request_advances_while_others_send_short_ones_without_end() -> None:
    for clients in (1, 4):
        world = make(2)
        counter = iter(range(10, 10_000_000))

        def again(request: int, world: World = world, counter: Iterator[int] = counter, clients: int = clients) -> None:
            if request >= 10:
                number = next(counter)
                world.arrive(number, (32,), f"short {number % clients}")

        world.on_finish = again
        for number in range(400):
            world.arrive(next(counter), (32,), f"short {number % clients}")
        world.run(until=1.0)
        world.arrive(1, (256,) * 64, "short 0")
        world.run(until=10.0)
        alone = 64 * 256 * PER_TOKEN / 2
        # One client: half of the work is promised to it. Several: it shares the part of its own client.
        assert world.finished[1] - world.arrived[1] < alone / AGEING * clients + 6 * BATCH_SECONDS


def test_a_stream_of_new_clients_does_not_starve_the_others() -> None:
    world = make(1)
    counter = iter(range(10, 10_000_000))

    def again(request: int) -> None:
        if request >= 10:
            number = next(counter)
            world.arrive(number, (32,), f"client {number}")

    world.on_finish = again
    for _ in range(200):
        number = next(counter)
        world.arrive(number, (32,), f"client {number}")
    world.run(until=1.0)
    world.served.clear()
    world.arrive(1, LARGE, "client")
    world.run(until=21.0)
    assert world.served["client"] >= 0.5 * AGEING * 20 / 201


def test_bulk_of_several_clients_is_shared_and_gives_way_to_interactive_items() -> None:
    world = make(1)
    world.arrive(1, (64,) * 500, "one", "bulk")
    world.arrive(2, (64,) * 500, "two", "bulk")
    world.run(until=1.0)
    assert abs(world.served["one"] - world.served["two"]) <= 3 * BATCH_SECONDS
    world.arrive(3, (8,), "two")
    world.run(until=2.0)
    assert world.waited(3) <= 2 * 0.05 + 1e-6


def test_clients_share_the_instances_of_each_length_class() -> None:
    world = make(2, classes=[LengthClass(1, 64), LengthClass(65, None)])
    for request in range(8):
        world.arrive(request, LARGE, "long")
        world.arrive(100 + request, (32,) * 2000, "short")
    world.run(until=1.0)
    for number, length in ((1000, 8), (1001, 200)):
        world.arrive(number, (length,), "other")
    world.run(until=2.0)
    assert max(world.waited(1000), world.waited(1001)) <= 2 * BATCH_SECONDS + 1e-6


def test_state_of_clients_is_forgotten() -> None:
    world = make(1)
    for number in range(6000):
        world.arrive(number, (8,), f"client {number}")
        world.run(until=world.now + 0.01)
    (queues,) = [group.queues for group in world.scheduler._groups]
    assert len(queues["interactive"]._clients) <= IDLE_CLIENTS + 1
    assert len(queues["interactive"]._order) <= IDLE_CLIENTS + 1
    assert not world.scheduler._admission._held_by
    for number in range(10_000, 16_000):  # they leave without being served
        world.arrive(number, (8,) * 2, f"client {number}")
        world._carry_out(world.scheduler.handle(Cancelled(number), world.now))
    assert len(queues["interactive"]._clients) <= IDLE_CLIENTS + 1
    world.scheduler.check()


# --------------------------------------------------------------------- the queue


def fill(world: World, client: str, lengths: Sequence[int], first: int) -> int:
    """Queue requests of a client until one is refused; returns how many were admitted."""
    for number in range(100_000):
        world.arrive(first + number, lengths, client)
        if first + number in world.rejected:
            return number
    raise AssertionError("no limit")


def test_the_backlog_of_a_client_limits_its_own_requests_only() -> None:
    world = make(1, queue_seconds=10.0)
    assert fill(world, "greedy", (256,) * 40, 0) == 10, "10 s of 1 s each, and one that has been sent"
    refused = next(iter(world.rejected.values()))
    assert (refused.status, refused.code) == (429, "queue_full")
    world.arrive(1000, (8,), "other")
    world.arrive(1001, (256,) * 40, "other")
    assert not {1000, 1001} & set(world.rejected)


def test_retry_after_is_when_the_own_backlog_has_room_for_the_request() -> None:
    world = make(1, queue_seconds=10.0)
    count = fill(world, "client", (256,) * 40, 0)
    wait = world.rejected[count].retry_after
    assert wait is not None
    assert 0.5 < wait < 2.0
    world.run(until=world.now + wait + BATCH_SECONDS)  # work counts as queued until its batch is cut
    world.arrive(100, (256,) * 40, "client")
    assert 100 not in world.rejected


def test_each_of_several_greedy_clients_leaves_room_for_one_more() -> None:
    world = make(1, queue_seconds=10.0)
    admitted = [fill(world, f"client {number}", (256,) * 8, 1000 * number) for number in range(30)]
    assert admitted[0] > admitted[1] > admitted[3] >= 1
    world.arrive(100_000, (8,), "one more")
    assert 100_000 not in world.rejected
    seconds = sum(q.tokens for group in world.scheduler._groups for q in group.queues.values()) * PER_TOKEN
    assert seconds <= 2 * 10.0 * (1 + SMALL_SHARE)


def test_a_client_that_has_filled_its_queue_with_large_requests_still_gets_short_ones_answered() -> None:
    world = make(1, queue_seconds=10.0)
    fill(world, "client", (256,) * 40, 0)
    world.run(until=1.0)
    fill(world, "client", (256,) * 40, 100)
    world.arrive(1000, (8,), "client")
    assert fill(world, "client", (8,) * 100, 2000) < 30, "the part for small requests is limited too"
    world.run(until=world.now + 1)
    assert 1000 not in world.rejected
    assert world.waited(1000) <= 2 * BATCH_SECONDS + 1e-6


def test_a_request_that_can_never_be_admitted_gets_413() -> None:
    world = make(1, queue_seconds=5.0)
    world.arrive(1, (256,) * 400, "client")
    refused = world.rejected[1]
    assert (refused.status, refused.code, refused.retry_after) == (413, "too_much_work", None)
    assert "10 s" in refused.reason
    assert "at most 5 s" in refused.reason
    world.arrive(2, (256,) * 190, "client")
    assert 2 not in world.rejected
    world = make(1, queue=100)
    world.arrive(1, (1,) * 101, "client")
    assert (world.rejected[1].status, world.rejected[1].code) == (413, "too_many_items")


def test_seconds_do_not_limit_the_queue_while_costs_are_unknown_and_never_the_python_api() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], replace(limits(10_000, BATCH), queue_seconds=1.0))
    scheduler.handle(InstanceReady(0), 0.0)
    assert not any(isinstance(a, Reject) for a in scheduler.handle(Arrived(1, LARGE, client="client"), 0.0))
    world = make(1, queue_seconds=1.0)
    world.arrive(1, LARGE, "")
    assert not world.rejected


def test_the_number_of_items_of_a_client_is_limited_by_what_others_have() -> None:
    world = make(1, queue=100)
    assert fill(world, "greedy", (8,) * 20, 0) == 5
    assert world.scheduler.check_admission(17, 0.0, client="greedy").code == "queue_full"
    assert world.scheduler.check_admission(12, 0.0, client="greedy") is None, "a small request"
    assert world.scheduler.check_admission(13, 0.0, client="greedy").code == "queue_full"
    assert world.scheduler.check_admission(50, 0.0, client="other") is None
    assert world.scheduler.check_admission(51, 0.0, client="other").code == "queue_full"
    world.scheduler.hold(30, "other")
    assert world.scheduler.check_admission(20, 0.0, client="other") is None
    assert world.scheduler.check_admission(21, 0.0, client="other").code == "queue_full"
    world.scheduler.release(30, "other")
    world.scheduler.check()
