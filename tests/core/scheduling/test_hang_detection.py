"""Overdue batches: what is offered to other instances, which result counts, and when a worker is replaced."""

from __future__ import annotations

from dataclasses import replace

from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    Finish,
    InspectWorker,
    InstanceLost,
    InstanceReady,
    InstanceSpec,
    ProbeRequested,
    Reject,
    ReplaceWorker,
    Scheduler,
    Send,
    WorkerActivity,
)
from tests.scheduling import limits

MEASURED = tuple((r, r * w, r * w * w, 2e-3 + r * w * 1e-4) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])


def make(count: int = 2, classes: tuple[LengthClass, ...] | None = None) -> Scheduler:
    bounds = replace(limits(1000, 256), hang_factor=5.0, hang_seconds=1.0, busy_hang_seconds=30.0)
    scheduler = Scheduler([InstanceSpec(i, 1, classes[i] if classes else None) for i in range(count)], bounds)
    for instance in range(count):
        scheduler.handle(InstanceReady(instance, MEASURED, packed=True), 0.0)
    return scheduler


def sends(actions: list[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def of(kind: type, actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def test_the_items_of_an_overdue_batch_are_computed_by_another_instance_one_by_one() -> None:
    scheduler = make()
    (late,) = sends(scheduler.handle(Arrived(1, (8, 8)), 0.0))
    actions = scheduler.tick(1.0)
    assert of(InspectWorker, actions) == [InspectWorker(late.instance, late.batch)]
    (first,) = sends(actions)
    assert first.instance != late.instance
    assert len(first.items) == 1
    scheduler.check()
    (second,) = sends(scheduler.handle(BatchDone(first.instance, first.batch, 0.01), 1.01))
    scheduler.check()
    assert {*first.items, *second.items} == set(late.items)
    assert scheduler.handle(BatchDone(second.instance, second.batch, 0.01), 1.02) == [Finish(1)]
    assert scheduler.handle(BatchDone(late.instance, late.batch, 1.5), 1.5) == [], "the late result is dropped"
    scheduler.check()
    assert scheduler.idle


def test_a_late_result_counts_if_it_is_the_first() -> None:
    scheduler = make()
    (late,) = sends(scheduler.handle(Arrived(1, (8, 8)), 0.0))
    (copy,) = sends(scheduler.tick(1.0))
    assert scheduler.handle(BatchDone(late.instance, late.batch, 1.1), 1.1) == [Finish(1)]
    scheduler.check()
    assert scheduler.handle(BatchDone(copy.instance, copy.batch, 0.2), 1.2) == []
    scheduler.check()
    assert sends(scheduler.handle(Arrived(2, (8,)), 1.3)), "both instances serve again"


def test_an_item_occupies_two_workers_at_most() -> None:
    scheduler = make(count=3)
    (late,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    (copy,) = sends(scheduler.tick(1.0))
    assert sends(scheduler.tick(2.0)) == [], "no third copy"
    assert scheduler.handle(InstanceLost(copy.instance), 2.1) == [], "the first attempt still runs"
    scheduler.check()
    (reject,) = scheduler.handle(InstanceLost(late.instance), 2.2)
    assert isinstance(reject, Reject)
    assert (reject.status, reject.code) == (500, "instance_failed")
    assert "failed 2 times" in reject.reason
    assert scheduler.idle


def test_a_copy_that_waits_is_the_retry_of_a_lost_worker() -> None:
    scheduler = make(count=1)
    (late,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    scheduler.tick(1.0)
    assert scheduler.handle(InstanceLost(0), 1.1) == []
    scheduler.check()
    (again,) = sends(scheduler.handle(InstanceReady(0, MEASURED), 5.0))
    assert again.items == late.items
    assert scheduler.handle(BatchDone(0, again.batch, 0.01), 5.01) == [Finish(1)]


def test_the_ready_batch_of_an_overdue_worker_is_given_to_another() -> None:
    scheduler = make(count=2)
    running = sends(scheduler.handle(Arrived(1, (200,)), 0.0))
    running += sends(scheduler.handle(Arrived(2, (200,)), 0.0))
    ready = sends(scheduler.handle(Arrived(3, (260,)), 0.01)) + sends(scheduler.handle(Arrived(4, (260,)), 0.01))
    assert len(ready) == 2
    healthy, late = ready[0].instance, ready[1].instance
    for send in [*running, *ready]:
        if send.instance == healthy:
            scheduler.handle(BatchDone(healthy, send.batch, 0.02), 0.05)
    actions = scheduler.tick(1.0)
    scheduler.check()
    again = sends(actions)
    assert {send.instance for send in again} == {healthy}
    assert [s.items for s in again] == [s.items for s in (*running, *ready) if s.instance == late]


def test_a_worker_that_computes_is_slow_and_one_that_waits_hangs() -> None:
    for state, verdict in (("stopped", True), ("inactive", True), ("active", False)):
        scheduler = make(count=1)
        (late,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
        scheduler.tick(1.0)
        actions = scheduler.handle(WorkerActivity(0, late.batch, state), 1.5)  # type: ignore[arg-type]
        assert bool(of(ReplaceWorker, actions)) == verdict, state
        assert scheduler.responds(0) is False, "nothing is promised while it is late"


def test_a_worker_that_computes_is_inspected_again_and_replaced_in_the_end() -> None:
    scheduler = make(count=1)
    (late,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    inspected, replaced, now = 0, 0.0, 0.0
    while not replaced:
        due = scheduler.next_deadline()
        assert due is not None
        now = due
        actions = scheduler.tick(now)
        inspected += len(of(InspectWorker, actions))
        replaced = now if of(ReplaceWorker, actions) else 0.0
        scheduler.handle(WorkerActivity(0, late.batch, "active"), now)
    assert inspected >= 10
    assert 30.0 <= replaced < 32.0


def test_a_report_about_a_finished_batch_is_ignored() -> None:
    scheduler = make(count=1)
    (late,) = sends(scheduler.handle(Arrived(1, (8,)), 0.0))
    scheduler.tick(1.0)
    scheduler.handle(BatchDone(0, late.batch, 1.2), 1.2)
    scheduler.handle(Arrived(2, (8,)), 1.3)
    assert scheduler.handle(WorkerActivity(0, late.batch, "stopped"), 1.4) == []
    assert scheduler.responds(0)


def test_after_a_pause_of_the_whole_machine_nothing_is_replaced_without_an_inspection() -> None:
    scheduler = make(count=1)
    scheduler.handle(Arrived(1, (8,)), 0.0)
    assert of(ReplaceWorker, scheduler.tick(3600.0)) == []


def test_a_class_whose_instance_is_overdue_is_served_by_a_class_of_far_shorter_items() -> None:
    scheduler = make(classes=(LengthClass(1, 8), LengthClass(9, None)))
    (late,) = sends(scheduler.handle(Arrived(1, (250,)), 0.0))
    for number in range(20):  # items of the short class keep arriving
        now = 0.8 + number / 100
        for send in sends(scheduler.handle(Arrived(10 + number, (4,)), now)):
            scheduler.handle(BatchDone(send.instance, send.batch, 0.001), now + 0.001)
    assert late.instance == 1
    scheduler.tick(1.0)
    scheduler.handle(Arrived(2, (250,)), 1.05)
    found: set[int] = set()
    for number in range(100):
        running = scheduler._instances[0].batches
        if not running:
            break
        batch = running[0]
        found |= {item.request for item in batch.items}
        scheduler.handle(BatchDone(0, batch.id, 0.03), 1.1 + number / 100)
    assert {1, 2} <= found


def test_a_probe_is_an_empty_batch_of_an_idle_instance() -> None:
    scheduler = make(count=2)
    (probe,) = sends(scheduler.handle(ProbeRequested(1), 0.0))
    assert (probe.instance, probe.items) == (1, ())
    scheduler.check()
    assert scheduler.handle(ProbeRequested(1), 0.1) == [], "it is busy"
    (send,) = sends(scheduler.handle(Arrived(1, (8,)), 0.2))
    assert send.instance == 0
    assert InspectWorker(1, probe.batch) in scheduler.tick(1.0)
    assert [type(a) for a in scheduler.handle(WorkerActivity(1, probe.batch, "stopped"), 1.1)] == [ReplaceWorker]
    scheduler.handle(InstanceLost(1), 1.2)
    scheduler.check()


def test_ages_are_those_of_the_last_and_of_the_running_batch() -> None:
    scheduler = make(count=1)
    assert scheduler.ages(0, 2.0) == (2.0, None)
    (send,) = sends(scheduler.handle(Arrived(1, (8,)), 3.0))
    assert scheduler.ages(0, 3.5) == (3.5, 0.5)
    scheduler.handle(BatchDone(0, send.batch, 0.5), 3.5)
    assert scheduler.ages(0, 4.0) == (0.5, None)
    scheduler.handle(InstanceLost(0), 4.0)
    assert scheduler.ages(0, 5.0) == (None, None)
