from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.events import ActivityState
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    BatchFailed,
    Cancelled,
    DrainStarted,
    Event,
    Finish,
    InspectWorker,
    InstanceLost,
    InstanceReady,
    InstanceSpec,
    NoInstancesLeft,
    ProbeRequested,
    Reject,
    ReplaceWorker,
    Scheduler,
    Send,
    WorkerActivity,
)
from tests.scheduling import limits

MEASURED = tuple((r, r * w, r * w * w, 2e-3 + r * w * 1e-4) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])


def make(
    count: int = 2,
    queue: int = 1000,
    batch: int = 1024,
    classes: list[LengthClass] | None = None,
    packed: bool = False,
) -> Scheduler:
    specs = [InstanceSpec(i, 1, classes[i] if classes else None) for i in range(count)]
    scheduler = Scheduler(specs, limits(queue, batch))
    for spec in specs:
        assert scheduler.handle(InstanceReady(spec.id, MEASURED, packed), 0.0) == []
    return scheduler


def sends(actions: list[Action]) -> list[Send]:
    return [a for a in actions if isinstance(a, Send)]


def run_all(scheduler: Scheduler, actions: list[Action], now: float = 0.0) -> list[Action]:
    """Carry out all sends, each batch finishing in turn, until nothing runs; returns the other actions."""
    pending, others = [a for a in actions if isinstance(a, Send)], [a for a in actions if not isinstance(a, Send)]
    while pending:
        send = pending.pop(0)
        now += 0.01
        for action in scheduler.handle(BatchDone(send.instance, send.batch, 0.01), now):
            (pending if isinstance(action, Send) else others).append(action)  # type: ignore[arg-type]
        scheduler.check()
    return others


def test_packed_batches_take_any_lengths_in_arrival_order() -> None:
    scheduler = make(1, batch=600, packed=True)
    assert len(sends(scheduler.handle(Arrived(1, (5,)), 0.0))) == 1
    for number, length in enumerate((300, 3, 200, 9)):
        assert scheduler.handle(Arrived(2 + number, (length,)), 0.0) == []
    batch = sends(scheduler.handle(Arrived(6, (250,)), 0.0))[0]
    assert [item.length for item in batch.items] == [300, 200, 9, 3]
    assert {item.request for item in batch.items} == {2, 3, 4, 5}
    scheduler.check()


def test_a_padded_batch_excludes_items_that_would_be_mostly_padding() -> None:
    scheduler = make(1, batch=600)
    scheduler.handle(Arrived(1, (5,)), 0.0)
    for number, length in enumerate((300, 3, 9)):
        scheduler.handle(Arrived(2 + number, (length,)), 0.0)
    batch = sends(scheduler.tick(0.0026))[0]
    assert [item.length for item in batch.items] == [300]


def test_a_single_text_is_sent_at_once() -> None:
    scheduler = make()
    (send,) = scheduler.handle(Arrived(1, (12,)), 0.0)
    assert isinstance(send, Send)
    assert [(i.request, i.index, i.length) for i in send.items] == [(1, 0, 12)]
    assert scheduler.handle(BatchDone(send.instance, send.batch, 0.005), 0.005) == [Finish(1)]
    assert scheduler.idle
    assert scheduler.next_deadline() is None


def makespan(scheduler: Scheduler, lengths: tuple[int, ...], per_token: float = 1e-4) -> float:
    """Seconds until a client batch is answered, each worker taking exactly 2 ms + per_token for its padded batch."""
    running: dict[int, list[tuple[float, Send]]] = {}

    def take(actions: list[Action], now: float) -> None:
        for send in sends(actions):
            queue = running.setdefault(send.instance, [])
            start = queue[-1][0] if queue else now
            queue.append((start + 2e-3 + per_token * len(send.items) * send.items[0].length, send))

    take(scheduler.handle(Arrived(1, lengths), 0.0), 0.0)
    now = 0.0
    while not scheduler.idle:
        ends = [(queue[0][0], instance) for instance, queue in running.items() if queue]
        end, instance = min(ends)
        tick = scheduler.next_deadline()
        if tick is not None and tick < end:
            now = max(now, tick)
            take(scheduler.tick(now), now)
            continue
        now, send = running[instance].pop(0)
        take(scheduler.handle(BatchDone(instance, send.batch, 0.01), now), now)
        scheduler.check()
    return now


@pytest.mark.parametrize("lengths", [(26,) * 64, tuple(random.Random(1).choices([10, 20, 40, 80, 200], k=64))])
def test_a_client_batch_is_split_over_idle_instances_by_cost(lengths: tuple[int, ...]) -> None:
    alone = makespan(make(count=1, batch=2048), lengths)
    assert makespan(make(count=2, batch=2048), lengths) < 0.6 * alone
    assert makespan(make(count=4, batch=2048), lengths) < 0.35 * alone


def test_no_split_if_the_overhead_outweighs_the_gain() -> None:
    scheduler = make(count=2)
    batches = sends(scheduler.handle(Arrived(1, (8, 8)), 0.0))
    assert len(batches) == 1


def test_batches_stay_within_the_token_budget_and_are_sorted() -> None:
    scheduler = make(count=1, batch=512, queue=10_000)
    lengths = tuple(random.Random(2).randint(1, 256) for _ in range(500))
    actions = scheduler.handle(Arrived(1, lengths), 0.0)
    scheduler.check()
    assert run_all(scheduler, actions) == [Finish(1)]


def test_an_item_over_the_budget_goes_alone() -> None:
    scheduler = make(count=1, batch=100)
    (send,) = sends(scheduler.handle(Arrived(1, (300,)), 0.0))
    assert [i.length for i in send.items] == [300]


def test_padding_stays_small_when_many_items_wait() -> None:
    scheduler = make(count=1, batch=2048, queue=10_000)
    rng = random.Random(3)
    lengths = tuple(min(256, max(3, int(rng.lognormvariate(3.3, 0.9)))) for _ in range(2000))
    pending = sends(scheduler.handle(Arrived(1, lengths), 0.0))
    real = padded = 0
    now = 0.0
    while pending:
        send = pending.pop(0)
        real += sum(i.length for i in send.items)
        padded += len(send.items) * send.items[0].length
        now += 0.05
        pending += sends(scheduler.handle(BatchDone(send.instance, send.batch, 0.05), now))
    assert real == sum(lengths)
    assert real / padded > 0.85


def test_the_ready_batch_waits_until_the_running_one_is_about_to_end() -> None:
    scheduler = make(count=1)
    (first,) = sends(scheduler.handle(Arrived(1, (200,)), 0.0))
    assert scheduler.handle(Arrived(2, (10,)), 0.001) == []
    assert scheduler.handle(Arrived(3, (12,)), 0.002) == []
    deadline = scheduler.next_deadline()
    assert deadline is not None
    assert 0.015 < deadline < 0.022
    (second,) = sends(scheduler.tick(deadline))
    assert {i.request for i in second.items} == {2, 3}
    assert scheduler.handle(BatchDone(0, first.batch, 0.02), 0.022) == [Finish(1)]


def test_short_and_long_sequences_go_to_their_classes() -> None:
    scheduler = make(classes=[LengthClass(1, 32), LengthClass(33, None)])
    by_length = {i.length: s.instance for s in sends(scheduler.handle(Arrived(1, (20, 200)), 0.0)) for i in s.items}
    assert by_length == {20: 0, 200: 1}


def test_an_idle_instance_takes_work_of_a_class_that_is_behind() -> None:
    scheduler = make(classes=[LengthClass(1, 32), LengthClass(33, None)], batch=256)
    actions = scheduler.handle(Arrived(1, (200,) * 6), 0.0)
    assert {s.instance for s in sends(actions)} == {0, 1}
    assert run_all(scheduler, actions) == [Finish(1)]


def test_a_class_without_a_live_instance_is_served_by_others() -> None:
    scheduler = make(classes=[LengthClass(1, 32), LengthClass(33, None)])
    scheduler.handle(InstanceLost(1), 0.0)
    (send,) = sends(scheduler.handle(Arrived(1, (200,)), 0.1))
    assert send.instance == 0


def test_a_full_queue_is_rejected_with_429_and_retry_after() -> None:
    scheduler = make(count=1, queue=100)
    scheduler.handle(Arrived(1, (100,) * 100), 0.0)
    (reject,) = scheduler.handle(Arrived(2, (100,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 429
    assert reject.retry_after is not None
    assert reject.retry_after >= 1.0


def test_a_request_larger_than_the_queue_is_rejected_with_413() -> None:
    (reject,) = make(queue=10).handle(Arrived(1, (5,) * 11), 0.0)
    assert isinstance(reject, Reject)
    assert (reject.status, reject.retry_after) == (413, None)


def test_without_a_ready_instance_requests_are_rejected() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], limits(10, 100))
    (reject,) = scheduler.handle(Arrived(1, (5,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 503


def test_the_batch_of_a_lost_instance_is_retried_once_item_by_item() -> None:
    scheduler = make(count=2)
    (send,) = sends(scheduler.handle(Arrived(1, (8, 8)), 0.0))
    retried = sends(scheduler.handle(InstanceLost(send.instance), 0.01))
    assert [len(s.items) for s in retried] == [1]
    assert {s.instance for s in retried} == {1 - send.instance}
    assert run_all(scheduler, list(retried), 0.02) == [Finish(1)]


def test_a_bad_input_fails_its_own_request_only() -> None:
    scheduler, now = make(count=4), 0.0
    scheduler.handle(InstanceLost(3), now)
    blockers = [a for r in (10, 11, 12) for a in scheduler.handle(Arrived(r, (200,)), now)]
    for request in (1, 2, 3):  # the bad input and two others wait, and are sent together
        assert scheduler.handle(Arrived(request, (8,)), now) == []
    outcomes: list[Action] = []
    work: list[Action] = list(blockers)
    while work:
        action, now = work.pop(0), now + 0.02
        if not isinstance(action, Send):
            outcomes.append(action)
        elif any(i.request == 1 for i in action.items):
            assert len(action.items) in {1, 3}
            work += scheduler.handle(InstanceLost(action.instance), now)
        else:
            work += scheduler.handle(BatchDone(action.instance, action.batch, 0.01), now)
        scheduler.check()
    assert [a.request for a in outcomes if isinstance(a, Reject)] == [1]
    assert {a.request for a in outcomes if isinstance(a, Finish)} == {2, 3, 10, 11, 12}


def test_the_ready_batch_of_a_lost_instance_is_not_suspect() -> None:
    scheduler = make(count=1, batch=64)
    (first,) = sends(scheduler.handle(Arrived(1, (60,)), 0.0))
    (second,) = sends(scheduler.handle(Arrived(2, (60, 60)), 0.0))
    scheduler.handle(InstanceLost(0), 0.01)
    scheduler.check()
    again = sends(scheduler.handle(InstanceReady(0, MEASURED), 1.0))
    assert [i.request for i in again[0].items] == [1], "items of the running batch are retried alone, and first"
    (reject,) = scheduler.handle(InstanceLost(0), 1.1)
    assert isinstance(reject, Reject)
    assert reject.request == 1
    assert run_all(scheduler, scheduler.handle(InstanceReady(0, MEASURED), 2.0), 2.0) == [Finish(2)]
    assert first.batch != second.batch


def test_a_batch_that_raises_is_retried_item_by_item() -> None:
    scheduler = make(count=1)
    (send,) = sends(scheduler.handle(Arrived(1, (8, 9)), 0.0))
    (retry,) = sends(scheduler.handle(BatchFailed(0, send.batch, "no memory"), 0.1))
    assert len(retry.items) == 1
    actions = scheduler.handle(BatchFailed(0, retry.batch, "no memory"), 0.2)
    (reject,) = [a for a in actions if isinstance(a, Reject)]
    assert reject.status == 500
    assert "no memory" in reject.reason
    assert scheduler.idle


def test_a_late_result_of_a_lost_worker_is_dropped() -> None:
    scheduler = make(count=1)
    (send,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    scheduler.handle(InstanceLost(0), 0.1)
    assert scheduler.handle(BatchDone(0, send.batch, 0.1), 0.2) == []
    scheduler.check()


def test_cancelled_items_are_not_computed() -> None:
    scheduler = make(count=1)
    (first,) = sends(scheduler.handle(Arrived(1, (100,)), 0.0))
    scheduler.handle(Arrived(2, (100, 100)), 0.0)
    scheduler.handle(Cancelled(2), 0.001)
    scheduler.check()
    assert scheduler.handle(BatchDone(0, first.batch, 0.01), 0.01) == [Finish(1)]
    assert scheduler.idle


def test_a_hanging_instance_is_replaced_once() -> None:
    scheduler = make(count=1)
    (send,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    deadline = scheduler.next_deadline()
    assert deadline is not None
    assert deadline >= 1.0
    assert scheduler.tick(deadline) == [InspectWorker(0, send.batch)]
    stopped = WorkerActivity(0, send.batch, "stopped")
    assert [type(a) for a in scheduler.handle(stopped, deadline + 0.1)] == [ReplaceWorker]
    assert scheduler.handle(stopped, deadline + 0.2) == []
    assert scheduler.tick(deadline + 1) == []
    assert scheduler.next_deadline() is None
    scheduler.handle(InstanceLost(0), deadline + 2)
    assert sends(scheduler.handle(InstanceReady(0, MEASURED), deadline + 3))[0].items == send.items


def test_a_drain_finishes_admitted_requests_and_admits_no_more() -> None:
    scheduler = make(count=1)
    actions = scheduler.handle(Arrived(1, (8,)), 0.0)
    scheduler.handle(DrainStarted(), 0.0)
    (reject,) = scheduler.handle(Arrived(2, (8,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 503
    assert run_all(scheduler, actions) == [Finish(1)]


def test_when_no_instance_is_left_every_request_is_answered() -> None:
    scheduler = make(count=1)
    scheduler.handle(Arrived(1, (8,)), 0.0)
    scheduler.handle(InstanceLost(0), 0.1)
    (reject,) = scheduler.handle(NoInstancesLeft("the model crashes at load"), 0.2)
    assert isinstance(reject, Reject)
    assert "crashes" in reject.reason
    assert scheduler.idle


def test_a_request_without_items_is_finished_at_once() -> None:
    assert make().handle(Arrived(1, ()), 0.0) == [Finish(1)]


def test_the_same_request_id_twice_is_a_programming_error() -> None:
    scheduler = make()
    scheduler.handle(Arrived(1, (8,)), 0.0)
    with pytest.raises(ValueError, match="twice"):
        scheduler.handle(Arrived(1, (8,)), 0.0)


def test_a_large_request_does_not_delay_small_ones() -> None:
    scheduler = make(count=2, queue=10_000)
    running = sends(scheduler.handle(Arrived(1, (256,) * 1000), 0.0))
    now = 0.2  # some of the large request is done by then
    for _ in range(8):
        send = running.pop(0)
        running += sends(scheduler.handle(BatchDone(send.instance, send.batch, 0.1), now))
    running += sends(scheduler.handle(Arrived(2, (10,)), now))
    batches = 0
    while not any(item.request == 2 for send in running for item in send.items):
        send, batches, now = running.pop(0), batches + 1, now + 0.1
        running += sends(scheduler.handle(BatchDone(send.instance, send.batch, 0.1), now))
    assert batches <= 4, "it waits for the running and the ready batch, not for the large request"


def test_an_endless_stream_of_small_requests_does_not_starve_a_large_one() -> None:
    scheduler, now = make(count=1, queue=10_000, batch=256), 0.0
    running = sends(scheduler.handle(Arrived(1, (100,) * 20), now))
    request, finished = 1, False
    while not finished:
        for _ in range(10):  # more than the instance can compute
            request += 1
            running += sends(scheduler.handle(Arrived(request, (100,)), now))
        now += 0.06
        send = running.pop(0)
        actions = scheduler.handle(BatchDone(send.instance, send.batch, 0.06), now)
        running += sends(actions)
        finished = Finish(1) in actions
        assert now < 20.0, "the large request starves"


def test_nothing_is_queued_after_an_overdue_batch() -> None:
    scheduler = make(count=2)
    blocked = sends(scheduler.handle(Arrived(1, (50,)), 0.0)) + sends(scheduler.handle(Arrived(2, (50,)), 0.0))
    assert {send.instance for send in blocked} == {0, 1}
    healthy = blocked[1].instance
    scheduler.handle(BatchDone(healthy, blocked[1].batch, 0.01), 0.01)
    used = set()
    for request in range(3, 30):  # the other instance hangs, and this one does all the work
        now = 1.0 + request
        for send in sends(scheduler.handle(Arrived(request, (50,)), now)):
            used.add(send.instance)
            scheduler.handle(BatchDone(send.instance, send.batch, 0.01), now + 0.01)
    assert used == {healthy}


def test_consecutive_single_texts_go_to_the_instance_with_warm_caches() -> None:
    scheduler, used = make(count=4), set()
    for request in range(1, 10):
        send = sends(scheduler.handle(Arrived(request, (20,)), float(request)))[0]
        used.add(send.instance)
        scheduler.handle(BatchDone(send.instance, send.batch, 0.004), request + 0.004)
    assert len(used) == 1


@pytest.mark.parametrize(("since", "helps"), [(0.01, False), (0.5, True)])
def test_a_class_helps_with_far_longer_items_only_while_its_own_do_not_arrive(since: float, helps: bool) -> None:
    scheduler = make(classes=[LengthClass(1, 32), LengthClass(33, 512)])
    short = sends(scheduler.handle(Arrived(1, (20,)), 0.0))[0]
    scheduler.handle(BatchDone(short.instance, short.batch, 0.004), 0.004)
    assert [send.instance for send in sends(scheduler.handle(Arrived(2, (500,)), since))] == [1]
    helped = sends(scheduler.handle(Arrived(3, (500,)), since))
    assert [send.instance for send in helped] == ([0] if helps else [])
    scheduler.check()


def test_fifo_batches_take_items_in_arrival_order_whatever_their_lengths() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], limits(1000, 256, fifo_items=4))
    scheduler.handle(InstanceReady(0, MEASURED), 0.0)
    lengths = (7, 300, 5, 200, 9, 250)
    sent = sends(scheduler.handle(Arrived(1, lengths), 0.0))
    assert next([item.index for item in send.items] for send in sent) == [1, 3, 0, 2]
    scheduler.check()


def test_no_state_is_kept_of_answered_requests() -> None:
    scheduler, now = make(count=2, batch=256), 0.0
    tracemalloc.start()
    sizes = []
    for request in range(1, 6001):
        now += 0.05
        work = sends(scheduler.handle(Arrived(request, (10 + request % 90,)), now))
        scheduler.next_deadline()
        run_all(scheduler, list(work), now)
        scheduler.next_deadline()
        if request % 2000 == 0:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert scheduler.idle
    assert sizes[2] < sizes[1] + 50_000


class Histories(RuleBasedStateMachine):
    """Any order of events: nothing is lost, nothing is computed twice, every request gets exactly one answer."""

    @initialize(classes=st.booleans(), count=st.integers(1, 4))
    def start(self, classes: bool, count: int) -> None:
        ranges = [LengthClass(1, 32), LengthClass(33, 128), LengthClass(129, None)]
        specs = [InstanceSpec(i, 1, ranges[i % 3] if classes and count >= 3 else None) for i in range(count)]
        self.scheduler = Scheduler(specs, limits(60, 256))
        self.ready: set[int] = set()
        self.hanging: set[int] = set()
        self.overdue: dict[int, int] = {}
        self.running: dict[int, list[Send]] = {i: [] for i in range(count)}
        self.open: dict[int, int] = {}
        self.deadlines: dict[int, float] = {}
        self.just_sent: set[int] = set()
        self.next_request, self.now = 1, 0.0

    def feed(self, event: Event) -> None:
        self.take(self.scheduler.handle(event, self.now))
        for instance in range(len(self.running)):
            self.bulk_gives_way(instance)

    def bulk_gives_way(self, instance: int) -> None:
        """No bulk batch was just started on an instance for which interactive items wait."""
        record = self.scheduler._instances[instance]
        if record.batches and record.started == self.now and record.batches[-1].id in self.just_sent:
            waiting = record.group.queues["interactive"].count
            assert record.batches[-1].priority == "interactive" or not waiting

    def take(self, actions: list[Action]) -> None:
        self.just_sent = {action.batch for action in actions if isinstance(action, Send)}
        for action in actions:
            if isinstance(action, Send):
                assert action.instance in self.ready
                assert all(item.request in self.open for item in action.items), "of a request that is answered"
                self.running[action.instance].append(action)
            elif isinstance(action, Finish | Reject):
                assert self.open.pop(action.request) is not None
                if isinstance(action, Reject) and action.status == 504:
                    assert action.request in self.deadlines, "it never had a deadline"
                    unreachable = action.code == "deadline_unreachable"
                    assert unreachable == (self.now < self.deadlines[action.request])
            elif isinstance(action, InspectWorker):
                self.overdue[action.instance] = action.batch
            else:
                self.hanging.add(action.instance)

    def lose_hanging(self) -> None:
        while self.hanging:
            instance = self.hanging.pop()
            self.ready.remove(instance)
            self.running[instance] = []
            self.feed(InstanceLost(instance))

    @rule(
        lengths=st.lists(st.integers(1, 300), max_size=20),
        bulk=st.booleans(),
        patience=st.none() | st.floats(-0.1, 0.3) | st.floats(0.3, 100),
        client=st.sampled_from(["", "one", "two", "three"]),
    )
    def arrive(self, lengths: list[int], bulk: bool, patience: float | None, client: str) -> None:
        request, self.next_request = self.next_request, self.next_request + 1
        self.open[request] = len(lengths)
        deadline = None if patience is None else self.now + patience
        if deadline is not None:
            self.deadlines[request] = deadline
        self.feed(Arrived(request, tuple(lengths), "bulk" if bulk else "interactive", deadline, client))

    @rule(data=st.data())
    def become_ready(self, data: st.DataObject) -> None:
        absent = sorted(set(self.running) - self.ready)
        if absent:
            instance = data.draw(st.sampled_from(absent))
            self.ready.add(instance)
            self.feed(InstanceReady(instance, MEASURED, packed=data.draw(st.booleans())))

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data(), fails=st.booleans())
    def end_a_batch(self, data: st.DataObject, fails: bool) -> None:
        instance = data.draw(st.sampled_from([i for i, batches in self.running.items() if batches]))
        batch = self.running[instance].pop(0).batch
        self.feed(BatchFailed(instance, batch, "why") if fails else BatchDone(instance, batch, 0.01))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(self.ready)))
        self.ready.remove(instance)
        self.running[instance] = []
        self.feed(InstanceLost(instance))

    @precondition(lambda self: self.overdue)
    @rule(data=st.data(), state=st.sampled_from(["stopped", "inactive", "active"]))
    def inspect(self, data: st.DataObject, state: ActivityState) -> None:
        instance = data.draw(st.sampled_from(sorted(self.overdue)))
        self.feed(WorkerActivity(instance, self.overdue.pop(instance), state))
        self.lose_hanging()

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def probe(self, data: st.DataObject) -> None:
        self.feed(ProbeRequested(data.draw(st.sampled_from(sorted(self.ready)))))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        del self.open[request]
        self.feed(Cancelled(request))

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.scheduler.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.take(self.scheduler.tick(self.now))
            after = self.scheduler.next_deadline()
            assert after is None or after > self.now, "a tick that leaves its deadline in the past would spin"
            self.lose_hanging()

    @invariant()
    def fair(self) -> None:
        """Clients that wait are apart by at most two rounds, a batch and an item: the start time of a client advances
        by exactly the work that it gets."""
        per_token = max(self.scheduler.cost(instance).per_token for instance in self.running)
        self.per_token = max(per_token, getattr(self, "per_token", 0.0))
        for queue in self.scheduler._queues():
            starts = [client.start for client in queue._clients.values() if client.count]
            most = 2 * queue._round + (256 + 300) * self.per_token
            assert not starts or max(starts) - min(starts) <= most, "a client is far ahead of another"
            assert not starts or queue._time <= min(starts) + most, "a new client starts behind the others"

    @invariant()
    def consistent(self) -> None:
        self.scheduler.check()
        for request, record in self.scheduler._requests.items():
            if record.has_waiting and request in self.deadlines:
                due = self.scheduler.next_deadline()
                assert due is not None, "a deadline would not be checked"
                assert due <= self.deadlines[request]

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for instance in sorted(set(self.running) - self.ready):
            self.ready.add(instance)
            self.feed(InstanceReady(instance, MEASURED))
        for _ in range(10_000):
            busy = [i for i, batches in self.running.items() if batches]
            if not busy:
                break
            self.now += 0.01
            self.feed(BatchDone(busy[0], self.running[busy[0]].pop(0).batch, 0.01))
        assert not self.open, "a request was never answered although every instance works"
        assert self.scheduler.idle


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_check_admission_gives_the_same_rejection_and_changes_nothing() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], limits(10, 100))
    assert scheduler.check_admission(1, 0.0).code == "not_ready"
    scheduler.handle(InstanceReady(0), 0.0)
    scheduler.handle(Arrived(1, (5,) * 4), 0.0)
    assert scheduler.check_admission(6, 0.0) is None
    scheduler.hold(1, "")
    assert scheduler.check_admission(6, 0.0).code == "queue_full"
    scheduler.release(1, "")
    assert scheduler.check_admission(11, 0.0).status == 413
    scheduler.check()
    (refused,) = scheduler.handle(Arrived(2, (5,) * 7), 0.0)
    assert refused.reason == scheduler.check_admission(7, 0.0).reason
    scheduler.handle(DrainStarted(), 0.0)
    assert scheduler.check_admission(1, 0.0).code == "draining"


# ------------------------------------------------------------------ priorities


def bulk(request: int, lengths: tuple[int, ...], deadline: float | None = None) -> Arrived:
    return Arrived(request, lengths, "bulk", deadline)


@pytest.mark.parametrize("packed", [False, True])
def test_a_bulk_batch_is_short_or_a_single_item(packed: bool) -> None:
    scheduler, now = make(count=1, queue=10_000, batch=4096, packed=packed), 0.0
    running = sends(scheduler.handle(bulk(1, (30, 60, 90) * 40 + (2000,) * 2), now))
    counts = []
    while running:
        send = running.pop(0)
        counts.append(len(send.items))
        assert send.predicted <= 0.05 or len(send.items) == 1
        now += 0.05
        running += sends(scheduler.handle(BatchDone(send.instance, send.batch, send.predicted), now))
        scheduler.check()
    assert sum(counts) == 122
    assert max(counts) > 3, "items that fit are sent together"


def test_bulk_is_cut_only_when_no_interactive_item_waits() -> None:
    scheduler = make(count=1)
    (running,) = sends(scheduler.handle(Arrived(1, (200,)), 0.0))
    assert scheduler.handle(bulk(2, (10,)), 0.001) == []
    assert scheduler.handle(Arrived(3, (10,)), 0.002) == []
    deadline = scheduler.next_deadline()
    assert deadline is not None
    (ready,) = sends(scheduler.tick(deadline))
    assert [item.request for item in ready.items] == [3]
    scheduler.handle(BatchDone(0, running.batch, 0.022), 0.022)
    (last,) = sends(scheduler.handle(BatchDone(0, ready.batch, 0.003), 0.025))
    assert [item.request for item in last.items] == [2]


def test_ready_batches_of_bulk_are_cut_just_in_time_even_if_a_full_one_waits() -> None:
    scheduler = make(count=1, batch=256)
    (first,) = sends(scheduler.handle(bulk(1, (100,) * 50), 0.0))
    assert scheduler.handle(bulk(2, (100,) * 50), 0.001) == []
    deadline = scheduler.next_deadline()
    assert deadline is not None
    assert deadline > 0.9 * first.predicted
    (send,) = sends(scheduler.handle(Arrived(3, (20,)), 0.002)) or sends(scheduler.tick(deadline))
    assert [item.request for item in send.items] == [3], "it comes next, before all the bulk"


@pytest.mark.parametrize("count", [1, 3])
def test_an_interactive_item_waits_for_one_or_two_short_batches_however_much_bulk_is_queued(count: int) -> None:
    scheduler, now = make(count=count, queue=100_000, batch=4096, packed=True), 0.0
    ends: list[tuple[float, Send]] = []

    def take(actions: list[Action]) -> None:
        for send in sends(actions):
            mine = [end for end, other in ends if other.instance == send.instance]
            ends.append((max([now, *mine]) + send.predicted, send))

    take(scheduler.handle(bulk(1, (50,) * 20_000), now))
    rng, worst, asked = random.Random(4), 0.0, {}
    for request in range(2, 102):
        arrival = now + rng.random() * 0.2
        while True:
            end, send = min(ends, key=lambda entry: entry[0])
            tick = scheduler.next_deadline()
            now = min(end, arrival, max(now, tick if tick is not None else end))
            if now == arrival:
                break
            if now == end:
                ends.remove((end, send))
                for item in send.items:
                    if item.request in asked:
                        worst = max(worst, now - asked.pop(item.request))
                take(scheduler.handle(BatchDone(send.instance, send.batch, send.predicted), now))
            else:
                take(scheduler.tick(now))
        asked[request] = now
        take(scheduler.handle(Arrived(request, (20,)), now))
        if request % 10 == 0:
            scheduler.check()
    assert worst < 0.05 + 0.01, "it waits for the running and the ready batch, then takes its own time"


def test_part_of_the_queue_is_reserved_for_interactive_requests() -> None:
    scheduler = make(count=1, queue=100)
    scheduler.handle(bulk(1, (100,) * 75), 0.0)
    (refused,) = scheduler.handle(bulk(2, (100,)), 0.0)
    assert isinstance(refused, Reject)
    assert (refused.status, refused.code) == (429, "queue_full")
    assert refused.retry_after is not None
    assert scheduler.check_admission(25, 0.0) is None
    assert scheduler.check_admission(26, 0.0).code == "queue_full"
    assert scheduler.check_admission(76, 0.0, priority="bulk").status == 413
    scheduler.check()


def test_bulk_uses_the_idle_instances_of_every_class_in_short_batches() -> None:
    scheduler = make(classes=[LengthClass(1, 32), LengthClass(33, None)], batch=4096, packed=True)
    actions = scheduler.handle(bulk(1, (100,) * 40), 0.0)
    assert {send.instance for send in sends(actions)} == {0, 1}
    assert run_all(scheduler, actions) == [Finish(1)]


def test_failed_bulk_is_retried_after_interactive_items() -> None:
    scheduler = make(count=1)
    (send,) = sends(scheduler.handle(bulk(1, (8, 9)), 0.0))
    scheduler.handle(Arrived(2, (10,)), 0.0001)
    (after,) = sends(scheduler.handle(BatchFailed(0, send.batch, "why"), 0.001))
    assert [item.request for item in after.items] == [2]
    assert {type(action) for action in run_all(scheduler, [after], 0.01)} == {Finish}
    assert scheduler.idle


def test_unsent_items_of_cancelled_requests_are_dropped_from_both_queues() -> None:
    scheduler = make(count=2, batch=256)
    running = sends(scheduler.handle(Arrived(1, (100,) * 50), 0.0))
    scheduler.handle(bulk(2, (100,) * 50), 0.0)
    scheduler.handle(Cancelled(1), 0.001)
    scheduler.handle(Cancelled(2), 0.001)
    scheduler.check()
    assert sum(scheduler.queued_by_class().values()) == 0
    for number, send in enumerate(running):
        assert scheduler.handle(BatchDone(send.instance, send.batch, 0.02), 0.02 + 0.001 * number) == []
    scheduler.check()
    assert scheduler.idle
    assert scheduler.next_deadline() is None


# ------------------------------------------------------------------- deadlines


def test_a_deadline_that_cannot_be_met_is_rejected_at_once_with_the_prediction() -> None:
    scheduler = make(count=1)
    scheduler.handle(Arrived(1, (200,) * 20), 0.0)  # 0.4 s and more
    (refused,) = scheduler.handle(Arrived(2, (200,) * 20, deadline=0.2), 0.0)
    assert isinstance(refused, Reject)
    assert (refused.status, refused.code) == (504, "deadline_unreachable")
    assert "0.200 s" in refused.reason
    assert "predicted in 0.8" in refused.reason
    assert scheduler.handle(Arrived(3, (200,) * 20, deadline=1.0), 0.0) == []


def test_a_request_is_admitted_if_it_is_late_by_less_than_the_prediction_error() -> None:
    def refused(deadline: float) -> bool:
        actions = make(count=1, batch=10_000).handle(Arrived(1, (100,) * 10, deadline=deadline), 0.0)
        return any(isinstance(a, Reject) for a in actions)

    assert not refused(0.102)
    assert not refused(0.094), "the prediction is 0.102 s, and 10 % less would do"
    assert refused(0.088)


def test_a_small_request_is_not_rejected_because_of_a_large_one_that_it_overtakes() -> None:
    scheduler = make(count=1, queue=10_000, batch=1024, packed=True)
    scheduler.handle(Arrived(1, (100,) * 2000), 0.0)  # 20 s of work
    assert scheduler.handle(Arrived(2, (10,), deadline=0.25), 0.19) == []
    (refused,) = scheduler.handle(Arrived(3, (100,) * 500, deadline=2.5), 0.19)
    assert refused.code == "deadline_unreachable"
    refused = scheduler.handle(Arrived(4, (100,) * 500, deadline=62.5), 60.0)[0]
    assert (refused.request, refused.code) == (4, "deadline_unreachable"), "known even if all instances hang"


def test_predictions_put_bulk_after_all_interactive_work_and_never_the_reverse() -> None:
    scheduler = make(count=1, queue=10_000)
    scheduler.handle(Arrived(1, (100,) * 100), 0.0)
    (refused,) = scheduler.handle(bulk(2, (10,), deadline=0.5), 0.0)
    assert refused.code == "deadline_unreachable"
    other = make(count=1, queue=10_000)
    other.handle(bulk(1, (100,) * 100), 0.0)
    assert other.handle(Arrived(2, (10,), deadline=0.1), 0.0) == []


def test_a_request_whose_deadline_passes_in_the_queue_is_answered_then_and_not_computed() -> None:
    scheduler = make(count=1, batch=256)
    (running,) = sends(scheduler.handle(Arrived(1, (200,)), 0.0))
    scheduler.handle(Arrived(2, (100,) * 2, deadline=0.045), 0.001)
    scheduler.handle(Arrived(3, (10,)), 0.002)
    deadline = scheduler.next_deadline()
    assert deadline is not None
    (ready,) = sends(scheduler.tick(deadline))
    assert {item.request for item in ready.items} <= {2, 3}
    scheduler.handle(Arrived(4, (30,), deadline=0.09), 0.03)
    late = 0.1  # the instance is slower than predicted
    assert scheduler.next_deadline() <= 0.09
    refused = [a for a in scheduler.tick(late) if isinstance(a, Reject)]
    assert 4 in [a.request for a in refused]
    assert all((a.status, a.code) == (504, "deadline_exceeded") for a in refused)
    assert "after 0.070 s in the queue; 1 of 1 inputs" in next(a.reason for a in refused if a.request == 4)
    scheduler.check()
    scheduler.handle(BatchDone(0, running.batch, 0.1), late)
    scheduler.handle(BatchDone(0, ready.batch, 0.1), late)
    scheduler.check()


def test_results_of_items_that_run_when_the_deadline_passes_are_discarded() -> None:
    scheduler = make(count=1, batch=100)
    running = sends(scheduler.handle(Arrived(1, (100,) * 3, deadline=0.04), 0.0))[0]
    (refused,) = [a for a in scheduler.tick(0.04) if isinstance(a, Reject)]
    assert "of 3 inputs were still waiting" in refused.reason
    scheduler.check()
    for batch in [running.batch, *(b.id for b in list(scheduler._instances[0].batches)[1:])]:
        assert not any(isinstance(a, Finish) for a in scheduler.handle(BatchDone(0, batch, 0.05), 0.05))
    assert scheduler.idle
    assert not any(instance.batches for instance in scheduler._instances.values())


def test_items_sent_in_time_are_answered_late_but_not_retried_after_the_deadline() -> None:
    scheduler = make(count=1)
    (send,) = sends(scheduler.handle(Arrived(1, (50,), deadline=0.02), 0.0))
    assert scheduler.tick(0.03) == []
    assert scheduler.handle(BatchDone(0, send.batch, 0.05), 0.05) == [Finish(1)]
    (send,) = sends(scheduler.handle(Arrived(2, (50,), deadline=0.08), 0.06))
    (refused,) = scheduler.handle(BatchFailed(0, send.batch, "why"), 0.1)
    assert (refused.request, refused.code) == (2, "deadline_exceeded")


def test_a_deadline_already_passed_on_arrival_is_rejected() -> None:
    (refused,) = make().handle(Arrived(1, (5,), deadline=0.9), 1.0)
    assert (refused.status, refused.code) == (504, "deadline_exceeded")


def test_distant_deadlines_of_answered_requests_do_not_accumulate() -> None:
    scheduler, now = make(count=1), 0.0
    for request in range(1, 5001):
        now += 0.05
        run_all(scheduler, list(scheduler.handle(Arrived(request, (10,), deadline=now + 1e6), now)), now)
    assert len(scheduler._deadlines._heap) <= 1001


def test_cancelled_bulk_does_not_accumulate_while_there_is_no_idle_time() -> None:
    scheduler = make(count=1)
    scheduler.handle(Arrived(1, (10,)), 0.0)
    for request in range(2, 302):
        scheduler.handle(bulk(request, (10,) * 50), 0.0)
        scheduler.handle(Cancelled(request), 0.0)
        scheduler.check()
        scheduler.handle(bulk(1000 + request, (10,)), 0.0)  # the client has something waiting all the time
    (queue,) = [group.queues["bulk"] for group in scheduler._groups]
    (client,) = queue._clients.values()
    assert sum(map(len, client.buckets.values())) <= 1051 + 300


def test_a_slow_instance_leaves_an_item_to_a_faster_one_that_is_nearly_done() -> None:
    scheduler = Scheduler([InstanceSpec(0, 8), InstanceSpec(1, 1)], limits(100, 1024))
    slow = tuple((r, t, p, 10 * s) for r, t, p, s in MEASURED)
    scheduler.handle(InstanceReady(0, MEASURED, packed=True), 0.0)
    scheduler.handle(InstanceReady(1, slow, packed=True), 0.0)
    (first,) = sends(scheduler.handle(Arrived(1, (50,)), 0.0))
    assert first.instance == 0
    assert scheduler.handle(Arrived(2, (50,)), 0.003) == []
    deadline = scheduler.next_deadline()
    assert deadline is not None
    (second,) = sends(scheduler.tick(deadline))
    assert second.instance == 0
    scheduler.handle(Arrived(3, (256,) * 60), deadline)
    assert any(b.items for b in scheduler._instances[1].batches), "with much work it takes its share"


def test_an_instance_starts_with_its_initial_drift_each_time_it_becomes_ready() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], limits(100, 1024))
    scheduler.set_initial_drift(0, 0.5)
    scheduler.handle(InstanceReady(0, MEASURED), 0.0)
    (send,) = sends(scheduler.handle(Arrived(1, (100,)), 0.0))
    assert send.predicted == pytest.approx(0.5 * 12e-3, rel=0.01)
    scheduler.handle(InstanceLost(0), 0.1)
    scheduler.set_initial_drift(0, 1.0)
    (send,) = sends(scheduler.handle(InstanceReady(0, MEASURED), 0.2))
    assert send.predicted == pytest.approx(12e-3, rel=0.01)
    assert scheduler.cost(0).drift_at_start == 1.0


def test_a_slow_class_does_not_help_if_an_instance_that_started_late_is_nearly_done() -> None:
    classes = [LengthClass(1, 32)] + [LengthClass(33, None)] * 6
    scheduler = Scheduler([InstanceSpec(i, 1, classes[i]) for i in range(7)], limits(100, 1024))
    for number in range(7):
        slow = tuple((*m[:3], m[3] * (3 if number == 0 else 1)) for m in MEASURED)
        scheduler.handle(InstanceReady(number, slow), 0.0)
    for request in range(5):
        scheduler.handle(Arrived(request, (2000,)), 0.0)  # 0.2 s each
    (late,) = sends(scheduler.handle(Arrived(5, (100,)), 0.01))
    assert scheduler.handle(Arrived(6, (100,)), 0.015) == [], "ready at 0.034 there, and helped at 0.051"
    (ready,) = sends(scheduler.tick(scheduler.next_deadline()))
    assert (ready.instance, ready.items[0].request) == (late.instance, 6)
    scheduler.check()
