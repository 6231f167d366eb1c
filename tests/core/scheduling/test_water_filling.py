from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.cost.cost_model import work_of
from launcher.core.scheduling.instance_state import SCAN_LIMIT
from launcher.core.scheduling.scheduler import (
    Action,
    Arrived,
    BatchDone,
    InstanceReady,
    InstanceSpec,
    Scheduler,
    Send,
)
from launcher.core.scheduling.water_filling import SHARE_OVER_OVERHEAD, Candidate, common_finish
from tests.scheduling import limits

takers = st.builds(Candidate, st.floats(0, 2), st.floats(0.1, 100), st.floats(0, 0.1))


@given(st.floats(0.01, 1e4), st.lists(takers, min_size=1, max_size=10))
def test_shares_that_finish_together_add_up_to_the_work(work: float, those: list[Candidate]) -> None:
    end = common_finish(work, those)
    shares = [(end - t.free - t.overhead) * t.speed for t in those]
    first = min(those, key=lambda t: (t.free + t.overhead, -t.speed))
    assert end <= first.free + first.overhead + work / first.speed + 1e-9
    # The candidates that could begin before the end do all of the work; those that were left out could do more.
    assert sum(max(s, 0) for s in shares) >= work * (1 - 1e-6)


def test_without_candidates_the_finish_is_infinite() -> None:
    assert common_finish(1.0, []) == math.inf


def measured(overhead: float, per_token: float, per_pair: float) -> tuple[tuple[int, int, int, float], ...]:
    return tuple(
        (r, r * w, r * w * w, overhead + r * w * per_token + r * w * w * per_pair)
        for r, w in [(1, 16), (4, 64), (8, 128), (1, 256), (16, 16), (2, 256)]
    )


def serve(models: list[tuple[float, float, float]]) -> Scheduler:
    """A scheduler with idle instances of these costs: overhead, per token, per pair."""
    scheduler = Scheduler([InstanceSpec(i, 1) for i in range(len(models))], limits(10_000, 1 << 20))
    for instance, cost in enumerate(models):
        scheduler.handle(InstanceReady(instance, measured(*cost), packed=True), 0.0)
    return scheduler


def seconds(scheduler: Scheduler, send: Send) -> float:
    work = work_of([item.length for item in send.items], packed=True)
    return scheduler.cost(send.instance).seconds(work.tokens, work.pairs)


def ends(models: list[tuple[float, float, float]], lengths: tuple[int, ...]) -> dict[int, float]:
    """When each instance finishes its part of a client batch, if all batches take as long as predicted."""
    scheduler, now = serve(models), 0.0
    running: dict[int, list[tuple[float, Send]]] = {}
    found: dict[int, float] = {}

    def take(actions: list[Action]) -> None:
        for send in actions:
            if isinstance(send, Send):
                queue = running.setdefault(send.instance, [])
                begins = max(now, queue[-1][0]) if queue else now
                queue.append((begins + seconds(scheduler, send), send))
                found[send.instance] = queue[-1][0]

    take(scheduler.handle(Arrived(1, lengths), 0.0))
    while not scheduler.idle:
        end, instance = min((queue[0][0], instance) for instance, queue in running.items() if queue)
        tick = scheduler.next_deadline()
        if tick is not None and tick < end:
            now = max(now, tick)
            take(scheduler.tick(now))
            continue
        now, send = running[instance].pop(0)
        take(scheduler.handle(BatchDone(instance, send.batch, seconds(scheduler, send)), now))
        scheduler.check()
    return found


def parts(
    models: list[tuple[float, float, float]], lengths: tuple[int, ...]
) -> list[tuple[int, float, tuple[int, ...]]]:
    """(instance, predicted seconds, lengths) of each part into which a client batch is split at once."""
    scheduler = serve(models)
    sends = [a for a in scheduler.handle(Arrived(1, lengths), 0.0) if isinstance(a, Send)]
    return [(s.instance, seconds(scheduler, s), tuple(item.length for item in s.items)) for s in sends]


def unevenness(models: list[tuple[float, float, float]], lengths: list[int]) -> float:
    """How much the relative speeds of the instances differ between these lengths and 64 tokens."""
    costs = [[(t + p * x) / (t + p * 64) for _, t, p in models] for x in (min(lengths), max(lengths))]
    return max(max(of_length) / min(of_length) for of_length in costs) - 1


costs = st.tuples(st.floats(5e-4, 5e-3), st.floats(2e-5, 4e-4), st.floats(0, 4e-7))


@settings(deadline=None)
@given(st.lists(costs, min_size=2, max_size=SCAN_LIMIT), st.lists(st.integers(3, 256), min_size=1, max_size=200))
def test_parts_on_idle_instances_of_any_speed_finish_together(
    models: list[tuple[float, float, float]], lengths: list[int]
) -> None:
    found = ends(models, tuple(lengths))
    longest = max(lengths)
    item = max(models[i][1] * longest + models[i][2] * longest**2 for i in found)
    overhead = max(models[i][0] for i in found)
    # Speed is measured at 64 tokens; at other lengths it is less accurate for instances with different attention costs.
    slack = max(1e-6, unevenness(models, lengths) * max(found.values()))
    assert max(found.values()) - min(found.values()) <= item + SHARE_OVER_OVERHEAD * overhead + slack
    alone = min(o + sum(t * x + p * x * x for x in lengths) for o, t, p in models)
    assert max(found.values()) <= alone + item + overhead + slack, "a split is slower than the fastest instance alone"


@pytest.mark.parametrize("ratio", [1, 2, 3, 8])
def test_a_batch_of_64_texts_is_shared_in_proportion_to_speed(ratio: int) -> None:
    found = {i: (seconds, own) for i, seconds, own in parts([(1e-3, 1e-4, 0), (1e-3, 1e-4 * ratio, 0)], (40,) * 64)}
    alone = 1e-3 + 64 * 40 * 1e-4
    fast, slow = found[0], found[1]
    assert len(fast[1]) == pytest.approx(64 * ratio / (ratio + 1), abs=1)
    assert max(fast[0], slow[0]) < alone * (ratio / (ratio + 1) + 0.04)
    if ratio == 1:
        assert max(fast[0], slow[0]) <= 0.6 * alone


@pytest.mark.parametrize("lengths", [(30,), (8, 8), (20, 20, 20)])
def test_work_that_costs_little_more_than_its_overhead_is_not_split_and_goes_to_the_fastest(
    lengths: tuple[int, ...],
) -> None:
    ((instance, _, own),) = parts([(2e-3, 2e-4, 0), (2e-3, 1e-4, 0), (2e-3, 3e-4, 0)], lengths)
    assert instance == 1
    assert sorted(own) == sorted(lengths)


def test_a_share_is_kept_for_an_instance_that_is_about_to_be_free() -> None:
    scheduler = Scheduler([InstanceSpec(i, 1) for i in range(2)], limits(10_000, 1 << 20))
    for instance in range(2):
        scheduler.handle(InstanceReady(instance, measured(1e-3, 1e-4, 0), packed=True), 0.0)
    scheduler.handle(Arrived(1, (200,)), 0.0)  # 21 ms
    (send,) = [a for a in scheduler.handle(Arrived(2, (40,) * 64), 0.016) if isinstance(a, Send)]
    assert len(send.items) == pytest.approx(33, abs=1), "the other one has half of the work too, 5 ms later"
