from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from launcher.core.lengths import LengthClass
from launcher.core.scheduler import (
    Action,
    AllGone,
    Arrived,
    BatchDone,
    BatchFailed,
    Cancelled,
    DrainStarted,
    Event,
    Finish,
    InstanceLost,
    InstanceReady,
    InstanceSpec,
    Reject,
    Replace,
    Scheduler,
    SchedulerLimits,
    Send,
)

MEASURED = tuple((r, r * w, r * w * w, 2e-3 + r * w * 1e-4) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])


def make(
    count: int = 2,
    queue: int = 1000,
    batch: int = 1024,
    classes: list[LengthClass] | None = None,
    packed: bool = False,
) -> Scheduler:
    specs = [InstanceSpec(i, 1, classes[i] if classes else None) for i in range(count)]
    scheduler = Scheduler(specs, SchedulerLimits(queue, batch))
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


def test_packed_batches_take_any_lengths_in_the_order_in_which_they_came() -> None:
    scheduler = make(1, batch=600, packed=True)
    assert len(sends(scheduler.handle(Arrived(1, (5,)), 0.0))) == 1
    for number, length in enumerate((300, 3, 200, 9)):
        assert scheduler.handle(Arrived(2 + number, (length,)), 0.0) == []
    batch = sends(scheduler.handle(Arrived(6, (250,)), 0.0))[0]
    assert [item.length for item in batch.items] == [300, 200, 9, 3]
    assert {item.request for item in batch.items} == {2, 3, 4, 5}
    scheduler.check()


def test_a_padded_batch_leaves_out_what_would_be_mostly_padding() -> None:
    scheduler = make(1, batch=600)
    scheduler.handle(Arrived(1, (5,)), 0.0)
    for number, length in enumerate((300, 3, 9)):
        scheduler.handle(Arrived(2 + number, (length,)), 0.0)
    batch = sends(scheduler.tick(0.0026))[0]
    assert [item.length for item in batch.items] == [300]


def test_a_single_text_goes_out_at_once() -> None:
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


def test_no_split_when_the_overhead_eats_the_gain() -> None:
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


def test_padding_stays_small_when_much_waits() -> None:
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


def test_a_full_queue_is_answered_with_429_and_a_time() -> None:
    scheduler = make(count=1, queue=100)
    scheduler.handle(Arrived(1, (100,) * 100), 0.0)
    (reject,) = scheduler.handle(Arrived(2, (100,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 429
    assert reject.retry_after is not None
    assert reject.retry_after >= 1.0


def test_a_request_over_the_bound_is_refused_for_ever_not_with_429() -> None:
    (reject,) = make(queue=10).handle(Arrived(1, (5,) * 11), 0.0)
    assert isinstance(reject, Reject)
    assert (reject.status, reject.retry_after) == (413, None)


def test_without_a_ready_instance_requests_are_refused() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], SchedulerLimits(10, 100))
    (reject,) = scheduler.handle(Arrived(1, (5,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 503


def test_what_a_lost_instance_ran_is_tried_once_more_elsewhere_item_by_item() -> None:
    scheduler = make(count=2)
    (send,) = sends(scheduler.handle(Arrived(1, (8, 8)), 0.0))
    retried = sends(scheduler.handle(InstanceLost(send.instance), 0.01))
    assert [len(s.items) for s in retried] == [1]
    assert {s.instance for s in retried} == {1 - send.instance}
    assert run_all(scheduler, list(retried), 0.02) == [Finish(1)]


def test_a_poisoned_item_fails_its_request_and_spares_its_companions() -> None:
    scheduler, now = make(count=4), 0.0
    scheduler.handle(InstanceLost(3), now)
    blockers = [a for r in (10, 11, 12) for a in scheduler.handle(Arrived(r, (200,)), now)]
    for request in (1, 2, 3):  # the poisoned one and two others wait, and go out together
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


def test_a_ready_batch_of_a_lost_instance_is_not_blamed() -> None:
    scheduler = make(count=1, batch=64)
    (first,) = sends(scheduler.handle(Arrived(1, (60,)), 0.0))
    (second,) = sends(scheduler.handle(Arrived(2, (60, 60)), 0.0))
    scheduler.handle(InstanceLost(0), 0.01)
    scheduler.check()
    again = sends(scheduler.handle(InstanceReady(0, MEASURED), 1.0))
    assert [i.request for i in again[0].items] == [1], "what was running is tried alone, before anything else"
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
    assert deadline >= 30.0
    assert [type(a) for a in scheduler.tick(deadline)] == [Replace]
    assert scheduler.tick(deadline + 1) == []
    assert scheduler.next_deadline() is None
    scheduler.handle(InstanceLost(0), deadline + 2)
    assert sends(scheduler.handle(InstanceReady(0, MEASURED), deadline + 3))[0].items == send.items


def test_a_drain_finishes_what_is_here_and_admits_nothing() -> None:
    scheduler = make(count=1)
    actions = scheduler.handle(Arrived(1, (8,)), 0.0)
    scheduler.handle(DrainStarted(), 0.0)
    (reject,) = scheduler.handle(Arrived(2, (8,)), 0.0)
    assert isinstance(reject, Reject)
    assert reject.status == 503
    assert run_all(scheduler, actions) == [Finish(1)]


def test_when_all_is_gone_everything_is_answered() -> None:
    scheduler = make(count=1)
    scheduler.handle(Arrived(1, (8,)), 0.0)
    scheduler.handle(InstanceLost(0), 0.1)
    (reject,) = scheduler.handle(AllGone("the model crashes at load"), 0.2)
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


def test_a_large_request_does_not_keep_small_ones_waiting() -> None:
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
    assert batches <= 4, "it waits for what runs and what is ready, not for the large request"


def test_small_requests_without_end_do_not_starve_a_large_one() -> None:
    scheduler, now = make(count=1, queue=10_000, batch=256), 0.0
    running = sends(scheduler.handle(Arrived(1, (100,) * 20), now))
    request, finished = 1, False
    while not finished:
        for _ in range(10):  # more than the instance can do
            request += 1
            running += sends(scheduler.handle(Arrived(request, (100,)), now))
        now += 0.06
        send = running.pop(0)
        actions = scheduler.handle(BatchDone(send.instance, send.batch, 0.06), now)
        running += sends(actions)
        finished = Finish(1) in actions
        assert now < 20.0, "the large request starves"


def test_nothing_is_sent_to_wait_behind_a_batch_that_is_overdue() -> None:
    scheduler = make(count=2)
    blocked = sends(scheduler.handle(Arrived(1, (50,)), 0.0)) + sends(scheduler.handle(Arrived(2, (50,)), 0.0))
    assert {send.instance for send in blocked} == {0, 1}
    scheduler.handle(BatchDone(1, blocked[1].batch, 0.01), 0.01)
    used = set()
    for request in range(3, 30):  # instance 0 hangs, and instance 1 does all the rest
        now = 1.0 + request
        for send in sends(scheduler.handle(Arrived(request, (50,)), now)):
            used.add(send.instance)
            scheduler.handle(BatchDone(send.instance, send.batch, 0.01), now + 0.01)
    assert used == {1}


def test_nothing_is_kept_of_requests_that_are_answered() -> None:
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
        self.scheduler = Scheduler(specs, SchedulerLimits(60, 256))
        self.ready: set[int] = set()
        self.hanging: set[int] = set()
        self.running: dict[int, list[Send]] = {i: [] for i in range(count)}
        self.open: dict[int, int] = {}
        self.next_request, self.now = 1, 0.0

    def feed(self, event: Event) -> None:
        self.take(self.scheduler.handle(event, self.now))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert action.instance in self.ready
                self.running[action.instance].append(action)
            elif isinstance(action, Finish | Reject):
                assert self.open.pop(action.request) is not None
            else:
                self.hanging.add(action.instance)

    def lose_hanging(self) -> None:
        while self.hanging:
            instance = self.hanging.pop()
            self.ready.remove(instance)
            self.running[instance] = []
            self.feed(InstanceLost(instance))

    @rule(lengths=st.lists(st.integers(1, 300), max_size=20))
    def arrive(self, lengths: list[int]) -> None:
        request, self.next_request = self.next_request, self.next_request + 1
        self.open[request] = len(lengths)
        self.feed(Arrived(request, tuple(lengths)))

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
    def consistent(self) -> None:
        self.scheduler.check()

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


def test_a_refusal_is_foretold_and_changes_nothing() -> None:
    scheduler = Scheduler([InstanceSpec(0, 1)], SchedulerLimits(10, 100))
    assert scheduler.refusal(1, 0.0).code == "not_ready"
    scheduler.handle(InstanceReady(0), 0.0)
    scheduler.handle(Arrived(1, (5,) * 4), 0.0)
    assert scheduler.refusal(6, 0.0) is None
    assert scheduler.refusal(6, 0.0, ahead=1).code == "queue_full"
    assert scheduler.refusal(11, 0.0).status == 413
    scheduler.check()
    (refused,) = scheduler.handle(Arrived(2, (5,) * 7), 0.0)
    assert refused == scheduler.refusal(7, 0.0, request=2)
    scheduler.handle(DrainStarted(), 0.0)
    assert scheduler.refusal(1, 0.0).code == "draining"
