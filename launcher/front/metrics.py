"""What the front counts and times, in the Prometheus format, under names that start with ``launcher_``.

Separate so that names, labels and buckets have one home. Children are bound once: a lookup by labels costs about
1 µs, an increment of a bound child 0.4 µs, and both are paid for each request. Deciding anything from these numbers
must not enter here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from launcher.core.events import PRIORITIES, Priority

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
    """The bound children of one instance."""

    def __init__(self, families: _InstanceFamilies, instance: str, class_name: str) -> None:
        labels = {"instance": instance, "class": class_name}
        self._items = families.items.labels(**labels)
        self._tokens = families.tokens.labels(**labels)
        self._seconds = families.seconds.labels(**labels)
        self._real = families.computed.labels(**labels, kind="real")
        self._padding = families.computed.labels(**labels, kind="padding")
        self._failed = families.failed.labels(**labels)
        self._ready = families.ready.labels(**labels)
        self._lost = families.lost.labels(**labels)
        self._restarts = families.restarts.labels(**labels)
        self._attached = False

    def batch_done(self, items: int, real_tokens: int, computed_tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._items.observe(items)
        self._tokens.observe(computed_tokens)
        self._seconds.observe(seconds)
        self._real.inc(real_tokens)
        self._padding.inc(max(0, computed_tokens - real_tokens))

    def batch_failed(self) -> None:
        """The worker raised on a batch."""
        self._failed.inc()

    def attached(self) -> None:
        """A worker was started; all but the first are restarts."""
        if self._attached:
            self._restarts.inc()
        self._attached = True

    def ready(self) -> None:
        """The worker is warm."""
        self._ready.set(1)

    def lost(self) -> None:
        """The worker is gone."""
        self._ready.set(0)
        self._lost.inc()


class _InstanceFamilies:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("instance", "class")
        self.items = Histogram(
            "launcher_batch_items", "Items in a batch.", labels, registry=registry, buckets=ITEMS_BUCKETS
        )
        self.tokens = Histogram(
            "launcher_batch_tokens",
            "Tokens computed for a batch, padding counted.",
            labels,
            registry=registry,
            buckets=TOKENS_BUCKETS,
        )
        self.seconds = Histogram(
            "launcher_batch_seconds",
            "Seconds that a worker computed a batch.",
            labels,
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.computed = Counter(
            "launcher_computed_tokens",
            "Tokens computed: real ones, and padding.",
            (*labels, "kind"),
            registry=registry,
        )
        self.failed = Counter("launcher_batches_failed", "Batches that raised.", labels, registry=registry)
        self.ready = Gauge("launcher_instance_ready", "1 while the worker is warm.", labels, registry=registry)
        self.lost = Counter("launcher_instance_lost", "Workers lost, for any reason.", labels, registry=registry)
        self.restarts = Counter("launcher_restarts", "Workers started after the first.", labels, registry=registry)


class FrontMetrics:
    """All metrics of one front, in a registry of its own. ``instances`` maps each id to the name of its class."""

    def __init__(self, instances: Mapping[int, str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        families = _InstanceFamilies(registry)
        self._class_names = dict(instances)
        self.instances = {id: InstanceMetrics(families, str(id), name) for id, name in instances.items()}
        self._requests = Counter("launcher_requests", "Requests answered.", ("route", "status"), registry=registry)
        self._items = Counter("launcher_items", "Items computed for clients.", ("route",), registry=registry)
        self._tokens = Counter("launcher_tokens", "Real tokens of these items.", ("route",), registry=registry)
        self._priorities = Counter(
            "launcher_requests_by_priority", "Requests, by what they asked for.", ("priority",), registry=registry
        )
        self._missed = Counter(
            "launcher_deadlines_missed",
            "Requests answered with 504: refused as unreachable, or expired while they waited.",
            ("priority", "kind"),
            registry=registry,
        )
        self._asked = {p: self._priorities.labels(priority=p).inc for p in PRIORITIES}
        for p in PRIORITIES:
            for kind in MISSES.values():
                self._missed.labels(priority=p, kind=kind)
        self._stages = Histogram(
            "launcher_stage_seconds",
            "Seconds that a request spent in each stage.",
            ("stage",),
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self._observe = {stage: self._stages.labels(stage=stage).observe for stage in STAGES}

    def route(self, route: str) -> RouteMetrics:
        """The bound children of one route."""
        return RouteMetrics(self._requests, self._items, self._tokens, route)

    def asked(self, priority: Priority) -> None:
        """A request came with this priority."""
        self._asked[priority]()

    def missed(self, priority: Priority, code: str) -> None:
        """A request was answered with 504 and this code."""
        self._missed.labels(priority=priority, kind=MISSES[code]).inc()

    def stage(self, stage: Stage) -> Callable[[float], None]:
        """The function that takes the seconds which a request spent in ``stage``."""
        return self._observe[stage]

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
    """The bound children of one route; those of a status are bound when it first occurs."""

    def __init__(self, requests: Counter, items: Counter, tokens: Counter, route: str) -> None:
        self._requests, self._route = requests, route
        self._statuses: dict[int, Counter] = {}
        self._items, self._tokens = items.labels(route=route), tokens.labels(route=route)

    def answered(self, status: int) -> None:
        """A request was answered."""
        child = self._statuses.get(status)
        if child is None:
            child = self._statuses[status] = self._requests.labels(route=self._route, status=str(status))
        child.inc()

    def computed(self, items: int, tokens: int) -> None:
        """What a request had computed."""
        self._items.inc(items)
        self._tokens.inc(tokens)
