"""Instances and classes that change while requests wait and run: nothing is lost, and nothing is computed twice."""

from __future__ import annotations

import random

import pytest

from launcher.core.planning.length_classes import LengthClass
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    Cancelled,
    ChangeEnded,
    ChangeStarted,
    Event,
    Finish,
    InstanceAdded,
    InstanceReady,
    InstanceRemoved,
    InstanceRetiring,
    InstanceSpec,
    ProbeRequested,
    Reject,
    Scheduler,
    Send,
    WorkerActivity,
)
from tests.scheduling import limits

MEASURED = tuple((r, r * w, r * w * w, 2e-3 + r * w * 1e-4) for r, w in [(1, 16), (4, 64), (8, 128), (1, 256)])
SHORT, LONG = LengthClass(1, 32), LengthClass(33, None)
OTHER_SHORT, OTHER_LONG = LengthClass(1, 100), LengthClass(101, None)


class World:
    """A scheduler whose workers do what they are told; ``finished`` and ``rejected`` are requests."""

    def __init__(self, *classes: LengthClass | None) -> None:
        self.specs = {id: InstanceSpec(id, 1, length_class) for id, length_class in enumerate(classes)}
        self.scheduler = Scheduler(list(self.specs.values()), limits(10_000, 1024))
        self.now = 0.0
        self.running: dict[int, list[Send]] = {id: [] for id in self.specs}
        self.retiring: set[int] = set()
        self.finished: list[int] = []
        self.rejected: list[Reject] = []
        for id in self.specs:
            self.feed(InstanceReady(id, MEASURED))

    def feed(self, event: Event) -> None:
        self.now += 0.001
        self._carry_out(self.scheduler.handle(event, self.now))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    assert action.instance not in self.retiring, "a batch for a retiring instance"
                    self.running[action.instance].append(action)
                case Finish():
                    self.finished.append(action.request)
                case Reject():
                    self.rejected.append(action)
        self.scheduler.check()

    def add(self, id: int, length_class: LengthClass | None) -> None:
        self.specs[id] = InstanceSpec(id, 1, length_class)
        self.running[id] = []
        self.feed(InstanceAdded(self.specs[id]))
        self.feed(InstanceReady(id, MEASURED))

    def retire(self, id: int) -> None:
        self.retiring.add(id)
        self.feed(InstanceRetiring(id))

    def remove(self, id: int) -> None:
        """Remove an instance; a batch that it has not finished is lost with it."""
        del self.specs[id], self.running[id]
        self.retiring.discard(id)
        self.feed(InstanceRemoved(id))

    def finish_batch(self, id: int) -> None:
        if self.running[id]:
            send = self.running[id].pop(0)
            self.feed(BatchDone(id, send.batch, 0.01))

    def finish_all(self) -> None:
        while any(self.running.values()):
            for id in list(self.running):
                self.finish_batch(id)


def test_a_retiring_instance_finishes_its_batches_and_gets_no_others() -> None:
    world = World(None, None)
    for request in range(200):
        world.feed(Arrived(request, (64,) * 8))
    mine = len(world.running[0])
    assert mine
    world.retire(0)
    for _ in range(mine):
        world.finish_batch(0)
    assert not world.running[0]
    world.remove(0)
    world.finish_all()
    assert sorted(world.finished) == list(range(200))


def test_requests_wait_in_a_change_while_no_instance_is_ready() -> None:
    world = World(None)
    world.feed(ChangeStarted())
    world.retire(0)
    world.remove(0)
    world.feed(Arrived(1, (8, 80)))
    assert (world.finished, world.rejected) == ([], [])
    world.add(0, SHORT)
    world.add(1, LONG)
    world.feed(ChangeEnded())
    world.finish_all()
    assert world.finished == [1]
    assert set(world.scheduler.queued_by_class()) == {SHORT.name, LONG.name}


def test_requests_are_refused_without_an_instance_when_no_change_is_in_progress() -> None:
    world = World(None)
    world.feed(ChangeStarted())
    world.retire(0)
    world.remove(0)
    world.feed(ChangeEnded())
    world.feed(Arrived(1, (8,)))
    assert [rejection.code for rejection in world.rejected] == ["not_ready"]


def test_waiting_items_move_to_the_queues_of_the_new_classes() -> None:
    world = World(SHORT, LONG)
    for request in range(300):
        world.feed(Arrived(request, (16, 64, 400)))
    waiting = sum(world.scheduler.queued_by_class().values())
    assert waiting
    for id in (0, 1):
        world.retire(id)
    world.add(2, None)
    world.remove(0)
    world.remove(1)
    assert set(world.scheduler.queued_by_class()) == {"all"}
    world.finish_all()
    assert sorted(world.finished) == list(range(300))


def test_a_report_on_the_worker_of_an_instance_that_was_removed_is_ignored() -> None:
    world = World(None, None)
    world.feed(ChangeStarted())
    world.retire(0)
    world.remove(0)
    world.feed(WorkerActivity(0, 1, "stopped"))
    assert set(world.specs) == {1}


def test_an_instance_cannot_be_added_twice() -> None:
    with pytest.raises(ValueError, match="added twice"):
        World(None).feed(InstanceAdded(InstanceSpec(0, 1)))


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_changes_computes_every_item_once(seed: int) -> None:
    choose = random.Random(seed)
    classes = [None, SHORT, LONG, OTHER_SHORT, OTHER_LONG]
    world = World(*choose.choice([(None, None), (SHORT, LONG), (OTHER_SHORT, OTHER_LONG, None)]))
    world.feed(ChangeStarted())
    requests, cancelled = 0, set()
    for _ in range(150):
        kind = choose.randrange(9)
        ids = sorted(world.specs)
        if kind < 3:
            lengths = tuple(choose.choice((4, 20, 40, 90, 150, 500)) for _ in range(choose.randrange(1, 6)))
            world.feed(Arrived(requests, lengths, choose.choice(("interactive", "bulk"))))
            requests += 1
        elif kind == 3 and requests:
            one = choose.randrange(requests)
            if one not in world.finished:
                cancelled.add(one)
                world.feed(Cancelled(one))
        elif kind == 4 and len(ids) < 6:
            world.add(next(id for id in range(10) if id not in world.specs), choose.choice(classes))
        elif kind == 5 and ids:
            world.retire(choose.choice(ids))
        elif kind == 6 and world.retiring:
            id = choose.choice(sorted(world.retiring))
            while world.running[id]:
                world.finish_batch(id)
            world.remove(id)
        elif kind == 7 and ids:
            world.feed(ProbeRequested(choose.choice(ids)))
        elif ids:
            world.finish_batch(choose.choice(ids))
    free = next(id for id in range(10) if id not in world.specs)
    world.add(free, None)
    world.feed(ChangeEnded())
    world.finish_all()
    assert world.rejected == []
    assert sorted(world.finished) == sorted(set(range(requests)) - cancelled)
