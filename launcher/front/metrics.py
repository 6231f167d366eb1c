"""What the front counts and times, in the Prometheus format, under names that start with ``launcher_``.

Separate so that names, labels and buckets have one home. What requests and batches add to is bound once
(``tallies``); gauges are the library's. Deciding anything from these numbers
must not enter here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from launcher.core.scheduling.events import PRIORITIES, Priority
from launcher.front.counters import CounterFamily, CounterValue, HistogramFamily

Stage = Literal["parse", "tokenize", "queue", "compute", "reply"]
STAGES: tuple[Stage, ...] = ("parse", "tokenize", "queue", "compute", "reply")
# What a deadline that is not kept is counted as, by the code of the error.
MISSES = {"deadline_unreachable": "refused", "deadline_exceeded": "expired"}
METRICS_CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# 0.1 ms … 13 s in steps of 2: from the parsing of a small body to a full queue.
SECONDS_BUCKETS = tuple(0.0001 * 2**step for step in range(18))
ITEMS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class InstanceMetrics:
    """What is counted for one instance."""

    def __init__(self, families: _InstanceFamilies, instance: str, class_name: str) -> None:
        labels = (instance, class_name)
        self._items = families.items.of(*labels)
        self._tokens = families.tokens.of(*labels)
        self._seconds = families.seconds.of(*labels)
        self._real = families.computed.of(*labels, "real")
        self._padding = families.computed.of(*labels, "padding")
        self._failed = families.failed.of(*labels)
        self._ready = families.ready.labels(*labels)
        self._lost = families.lost.of(*labels)
        self._restarts = families.restarts.of(*labels)
        self._attached = False

    def batch_done(self, items: int, real_tokens: int, computed_tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._items.add(items)
        self._tokens.add(computed_tokens)
        self._seconds.add(seconds)
        self._real.add(real_tokens)
        self._padding.add(max(0, computed_tokens - real_tokens))

    def batch_failed(self) -> None:
        """The worker raised on a batch."""
        self._failed.add()

    def attached(self) -> None:
        """A worker was started; all but the first are restarts."""
        if self._attached:
            self._restarts.add()
        self._attached = True

    def ready(self) -> None:
        """The worker is warm."""
        self._ready.set(1)

    def lost(self) -> None:
        """The worker is gone."""
        self._ready.set(0)
        self._lost.add()


class _InstanceFamilies:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("instance", "class")
        self.items = HistogramFamily(registry, "launcher_batch_items", "Items in a batch.", labels, ITEMS_BUCKETS)
        self.tokens = HistogramFamily(
            registry, "launcher_batch_tokens", "Tokens computed for a batch, padding counted.", labels, TOKENS_BUCKETS
        )
        self.seconds = HistogramFamily(
            registry, "launcher_batch_seconds", "Seconds that a worker computed a batch.", labels, SECONDS_BUCKETS
        )
        self.computed = CounterFamily(
            registry, "launcher_computed_tokens", "Tokens computed: real ones, and padding.", (*labels, "kind")
        )
        self.failed = CounterFamily(registry, "launcher_batches_failed", "Batches that raised.", labels)
        self.ready = Gauge("launcher_instance_ready", "1 while the worker is warm.", labels, registry=registry)
        self.lost = CounterFamily(registry, "launcher_instance_lost", "Workers lost, for any reason.", labels)
        self.restarts = CounterFamily(registry, "launcher_restarts", "Workers started after the first.", labels)


class FrontMetrics:
    """All metrics of one front, in a registry of its own. ``instances`` maps each id to the name of its class."""

    def __init__(self, instances: Mapping[int, str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        families = _InstanceFamilies(registry)
        self._class_names = dict(instances)
        self.instances = {id: InstanceMetrics(families, str(id), name) for id, name in instances.items()}
        self._requests = CounterFamily(registry, "launcher_requests", "Requests answered.", ("route", "status"))
        self._items = CounterFamily(registry, "launcher_items", "Items computed for clients.", ("route",))
        self._tokens = CounterFamily(registry, "launcher_tokens", "Real tokens of these items.", ("route",))
        priorities = CounterFamily(
            registry, "launcher_requests_by_priority", "Requests, by what they asked for.", ("priority",)
        )
        self._asked = {priority: priorities.of(priority) for priority in PRIORITIES}
        missed = CounterFamily(
            registry,
            "launcher_deadlines_missed",
            "Requests answered with 504: refused as unreachable, or expired while they waited.",
            ("priority", "kind"),
        )
        self._missed = {(p, code): missed.of(p, kind) for p in PRIORITIES for code, kind in MISSES.items()}
        stages = HistogramFamily(
            registry,
            "launcher_stage_seconds",
            "Seconds that a request spent in each stage.",
            ("stage",),
            SECONDS_BUCKETS,
        )
        self._stages = {stage: stages.of(stage).add for stage in STAGES}

    def route(self, route: str) -> RouteMetrics:
        """What is counted for one route."""
        return RouteMetrics(self._requests, self._items, self._tokens, route)

    def asked(self, priority: Priority) -> None:
        """A request came with this priority."""
        self._asked[priority].add()

    def missed(self, priority: Priority, code: str) -> None:
        """A request was answered with 504 and this code."""
        self._missed[priority, code].add()

    def stage(self, stage: Stage) -> Callable[[float], None]:
        """The function that takes the seconds which a request spent in ``stage``."""
        return self._stages[stage]

    def watch_queue(self, class_names: Sequence[str], queued: Callable[[], Mapping[str, int]]) -> None:
        """Report the items that wait, by class, as they are when somebody asks."""
        gauge = Gauge("launcher_queue_items", "Items that wait, by class.", ("class",), registry=self.registry)
        for name in class_names:
            gauge.labels(**{"class": name}).set_function(partial(_entry, queued, name))

    def watch_instances(self, name: str, description: str, value: Callable[[int], float]) -> None:
        """Report a value of each instance, given by its id, as it is when somebody asks."""
        gauge = Gauge(name, description, ("instance", "class"), registry=self.registry)
        for instance, class_name in self._class_names.items():
            labels = {"instance": str(instance), "class": class_name}
            gauge.labels(**labels).set_function(partial(value, instance))

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Report the requests that are being served, as they are when somebody asks."""
        gauge = Gauge("launcher_requests_in_flight", "Requests admitted, not answered.", registry=self.registry)
        gauge.set_function(count)

    def render(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


def _entry(entries: Callable[[], Mapping[str, int]], name: str) -> float:
    return entries()[name]


class RouteMetrics:
    """What is counted for one route; that of a status is bound when it first occurs."""

    def __init__(self, requests: CounterFamily, items: CounterFamily, tokens: CounterFamily, route: str) -> None:
        self._requests, self._route = requests, route
        self._statuses: dict[int, CounterValue] = {}
        self._items, self._tokens = items.of(route), tokens.of(route)

    def answered(self, status: int) -> None:
        """A request was answered."""
        tally = self._statuses.get(status)
        if tally is None:
            tally = self._statuses[status] = self._requests.of(self._route, str(status))
        tally.add()

    def computed(self, items: int, tokens: int) -> None:
        """What a request had computed."""
        self._items.add(items)
        self._tokens.add(tokens)
