"""The scheduler keeps to the limits that it is given."""

from __future__ import annotations

from dataclasses import replace

from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchFailed,
    InspectWorker,
    InstanceReady,
    InstanceSpec,
    Reject,
    ReplaceWorker,
    Scheduler,
    SchedulerLimits,
    Send,
    WorkerActivity,
)
from tests.scheduling import limits

DEFAULT = limits(100, 1024)
MEASURED = tuple((r, r * w, r * w * w, 2e-3 + r * w * 1e-4) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])


def make(bounds: SchedulerLimits) -> Scheduler:
    scheduler = Scheduler([InstanceSpec(0, 1)], bounds)
    scheduler.handle(InstanceReady(0, MEASURED), 0.0)
    return scheduler


def sent(actions: list[Action]) -> Send:
    (send,) = (action for action in actions if isinstance(action, Send))
    return send


def test_a_batch_counts_as_a_hang_after_the_factor_and_the_floor() -> None:
    for bounds in (replace(DEFAULT, hang_seconds=2.0), replace(DEFAULT, hang_seconds=0.1, hang_factor=1000.0)):
        scheduler = make(bounds)
        send = sent(scheduler.handle(Arrived(1, (10,)), 0.0))
        due = max(bounds.hang_seconds, bounds.hang_factor * send.predicted)
        assert scheduler.next_deadline() == due
        assert scheduler.tick(due - 1e-3) == []
        assert [type(action) for action in scheduler.tick(due)] == [InspectWorker]
        (replace_worker,) = scheduler.handle(WorkerActivity(0, send.batch, "inactive"), due + 1e-3)
        assert isinstance(replace_worker, ReplaceWorker)


def test_bulk_cannot_take_the_share_of_interactive_requests() -> None:
    for share, admitted in ((0.0, 100), (0.25, 75), (1.0, 0)):
        scheduler = make(replace(DEFAULT, interactive_share=share))
        refused = scheduler.handle(Arrived(1, (3,) * (admitted + 1), "bulk"), 0.0)
        assert [type(action) for action in refused] == [Reject]
        if admitted:
            assert not any(isinstance(a, Reject) for a in scheduler.handle(Arrived(2, (3,) * admitted, "bulk"), 0.0))


def test_a_bulk_batch_is_no_longer_than_its_limit() -> None:
    for seconds in (0.01, 0.05):
        scheduler = make(replace(DEFAULT, bulk_batch_seconds=seconds))
        send = sent(scheduler.handle(Arrived(1, (10,) * 75, "bulk"), 0.0))
        assert 0.5 * seconds < send.predicted <= seconds


def test_an_item_fails_after_as_many_attempts_as_allowed() -> None:
    for attempts in (1, 2, 3):
        scheduler = make(replace(DEFAULT, max_attempts=attempts))
        actions = scheduler.handle(Arrived(1, (10,)), 0.0)
        for number in range(attempts):
            assert not any(isinstance(action, Reject) for action in actions)
            actions = scheduler.handle(BatchFailed(0, sent(actions).batch, "no memory"), 0.1 * number)
        assert [type(action) for action in actions] == [Reject]
