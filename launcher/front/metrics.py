"""The Prometheus metrics of the front: names, labels and buckets, each defined once. To add a metric, add it here.

All names start with ``launcher_``. What requests and batches increment uses ``counters`` and is bound to its labels
once; gauges are the library's. Decisions based on these numbers do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from launcher.core.scheduling.events import PRIORITIES, Priority
from launcher.front.counters import CounterFamily, CounterValue, HistogramFamily
from launcher.front.quarantine import Quarantine

Stage = Literal["parse", "tokenize", "queue", "compute", "reply"]
STAGES: tuple[Stage, ...] = ("parse", "tokenize", "queue", "compute", "reply")
# The kind of a missed deadline, by the code of its error.
MISSES = {"deadline_unreachable": "refused", "deadline_exceeded": "expired"}
METRICS_CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# 0.1 ms … 13 s in factors of 2: from parsing a small body to waiting in a full queue.
SECONDS_BUCKETS = tuple(0.0001 * 2**step for step in range(18))
ITEMS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class InstanceMetrics:
    """The metrics of one instance."""

    def __init__(self, families: _InstanceFamilies, instance: str, class_name: str) -> None:
        labels = (instance, class_name)
        self._items = families.items.labels(*labels)
        self._tokens = families.tokens.labels(*labels)
        self._seconds = families.seconds.labels(*labels)
        self._real = families.computed.labels(*labels, "real")
        self._padding = families.computed.labels(*labels, "padding")
        self._failed = families.failed.labels(*labels)
        self._ready = families.ready.labels(*labels)
        self._lost = families.lost.labels(*labels)
        self._restarts = families.restarts.labels(*labels)
        self._attached = False

    def batch_done(self, items: int, real_tokens: int, computed_tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._items.add(items)
        self._tokens.add(computed_tokens)
        self._seconds.add(seconds)
        self._real.add(real_tokens)
        self._padding.add(max(0, computed_tokens - real_tokens))

    def batch_failed(self) -> None:
        """The worker raised an exception on a batch."""
        self._failed.add()

    def attached(self) -> None:
        """A worker was started; each one after the first is a restart."""
        if self._attached:
            self._restarts.add()
        self._attached = True

    def ready(self) -> None:
        """The worker is warmed up."""
        self._ready.set(1)

    def stopped(self) -> None:
        """The worker has stopped as requested."""
        self._ready.set(0)

    def lost(self) -> None:
        """The worker is gone."""
        self._ready.set(0)
        self._lost.add()


class _InstanceFamilies:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("instance", "class")
        self.items = HistogramFamily(registry, "launcher_batch_items", "Items in a batch.", labels, ITEMS_BUCKETS)
        self.tokens = HistogramFamily(
            registry, "launcher_batch_tokens", "Tokens computed for a batch, including padding.", labels, TOKENS_BUCKETS
        )
        self.seconds = HistogramFamily(
            registry,
            "launcher_batch_seconds",
            "Seconds that a worker took to compute a batch.",
            labels,
            SECONDS_BUCKETS,
        )
        self.computed = CounterFamily(
            registry, "launcher_computed_tokens", "Tokens computed, by kind: real or padding.", (*labels, "kind")
        )
        self.failed = CounterFamily(registry, "launcher_batches_failed", "Batches that failed in the worker.", labels)
        self.ready = Gauge(
            "launcher_instance_ready", "1 if the worker is ready, otherwise 0.", labels, registry=registry
        )
        self.lost = CounterFamily(registry, "launcher_instance_lost", "Workers lost for any reason.", labels)
        self.restarts = CounterFamily(
            registry, "launcher_restarts", "Workers started again after the first start.", labels
        )

    def remove(self, instance: str, class_name: str) -> None:
        """Export the metrics of this instance no longer."""
        labels = (instance, class_name)
        for family in (self.items, self.tokens, self.seconds, self.ready, self.failed, self.lost, self.restarts):
            family.remove(*labels)
        for kind in ("real", "padding"):
            self.computed.remove(*labels, kind)


class _Gauges(Collector):
    """A gauge whose labels and values are those that ``read`` returns on scrape."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        description: str,
        labels: Sequence[str],
        read: Callable[[], Iterable[tuple[Sequence[str], float]]],
    ) -> None:
        self._name, self._description, self._labels, self._read = name, description, labels, read
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Called by the registry, so that no name is used twice."""
        return [GaugeMetricFamily(self._name, self._description, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        family = GaugeMetricFamily(self._name, self._description, labels=self._labels)
        for values, value in self._read():
            family.add_metric(values, value)
        return [family]


class FrontMetrics:
    """All metrics of one front, in their own registry. ``instances`` maps each id to the name of its length class."""

    def __init__(self, instances: Mapping[int, str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._families = _InstanceFamilies(registry)
        self._class_names: dict[int, str] = {}
        self.instances: dict[int, InstanceMetrics] = {}
        for id, name in instances.items():
            self.add_instance(id, name)
        self._requests = CounterFamily(registry, "launcher_requests", "Requests answered.", ("route", "status"))
        self._items = CounterFamily(registry, "launcher_items", "Items computed for clients.", ("route",))
        self._tokens = CounterFamily(registry, "launcher_tokens", "Tokens of these items, without padding.", ("route",))
        priorities = CounterFamily(
            registry, "launcher_requests_by_priority", "Requests received, by priority.", ("priority",)
        )
        self._asked = {priority: priorities.labels(priority) for priority in PRIORITIES}
        missed = CounterFamily(
            registry,
            "launcher_deadlines_missed",
            "Requests answered with 504: refused because the deadline was unreachable, or expired in the queue.",
            ("priority", "kind"),
        )
        self.unauthorized = CounterFamily(
            registry, "launcher_unauthorized_requests", "Requests refused with 401: without a valid API key.", ()
        ).labels()
        self.machine_changes = CounterFamily(
            registry,
            "launcher_machine_changes",
            "Changes of the machine while the server runs, by what has changed.",
            ("part",),
        )
        self.rebound_threads = CounterFamily(
            registry, "launcher_rebound_threads", "Threads of the server that were moved, and bound again.", ()
        ).labels()
        self.foreign_cpu_seconds = CounterFamily(
            registry, "launcher_foreign_cpu_seconds", "CPU time that others used on the planned cpus.", ()
        ).labels()
        self._missed = {(p, code): missed.labels(p, kind) for p in PRIORITIES for code, kind in MISSES.items()}
        stages = HistogramFamily(
            registry,
            "launcher_stage_seconds",
            "Seconds that a request spent in each stage.",
            ("stage",),
            SECONDS_BUCKETS,
        )
        self._stages = {stage: stages.labels(stage).add for stage in STAGES}

    def add_instance(self, instance: int, class_name: str) -> None:
        """Export the metrics of an instance. One with the same id and class continues those of its predecessor."""
        if self._class_names.get(instance) == class_name:
            return
        self.remove_instance(instance)
        self._class_names[instance] = class_name
        self.instances[instance] = InstanceMetrics(self._families, str(instance), class_name)

    def remove_instance(self, instance: int) -> None:
        """Export the metrics of an instance no longer."""
        if instance in self.instances:
            self._families.remove(str(instance), self._class_names.pop(instance))
            del self.instances[instance]

    def route(self, route: str) -> RouteMetrics:
        """The metrics of one route."""
        return RouteMetrics(self._requests, self._items, self._tokens, route)

    def asked(self, priority: Priority) -> None:
        """A request arrived with this priority."""
        self._asked[priority].add()

    def missed(self, priority: Priority, code: str) -> None:
        """A request was answered with 504 and this code."""
        self._missed[priority, code].add()

    def stage(self, stage: Stage) -> Callable[[float], None]:
        """The function that records the seconds a request spent in ``stage``."""
        return self._stages[stage]

    def watch_queue(self, queued: Callable[[], Mapping[str, int]]) -> None:
        """Export the number of queued items by class, read on scrape."""
        _Gauges(
            self.registry,
            "launcher_queue_items",
            "Queued items, by class.",
            ("class",),
            lambda: [((name,), count) for name, count in queued().items()],
        )

    def watch_instances(self, name: str, description: str, value: Callable[[int], float | None]) -> None:
        """Export a value of each instance, given its id, read on scrape; an instance without one is left out."""

        def read() -> Iterable[tuple[Sequence[str], float]]:
            for instance, class_name in self._class_names.items():
                found = value(instance)
                if found is not None:
                    yield (str(instance), class_name), found

        _Gauges(self.registry, name, description, ("instance", "class"), read)

    def watch_quarantine(self, quarantine: Quarantine) -> None:
        """Export the number of quarantined inputs, and of requests refused because of one, read on scrape."""
        count = Gauge("launcher_quarantined_inputs", "Inputs that are refused.", registry=self.registry)
        count.set_function(lambda: quarantine.count)
        name, description = "launcher_quarantine_refusals", "Requests refused because of a quarantined input."
        Gauge(name, description, registry=self.registry).set_function(lambda: quarantine.refused)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Export the number of requests in flight, read on scrape."""
        self.watch("launcher_requests_in_flight", "Requests admitted and not yet answered.", count)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Export one value of the process, read on scrape."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


class RouteMetrics:
    """The metrics of one route; the counter of a status is bound when the status first occurs."""

    def __init__(self, requests: CounterFamily, items: CounterFamily, tokens: CounterFamily, route: str) -> None:
        self._requests, self._route = requests, route
        self._statuses: dict[int, CounterValue] = {}
        self._items, self._tokens = items.labels(route), tokens.labels(route)

    def answered(self, status: int) -> None:
        """A request was answered."""
        counter = self._statuses.get(status)
        if counter is None:
            counter = self._statuses[status] = self._requests.labels(self._route, str(status))
        counter.add()

    def computed(self, items: int, tokens: int) -> None:
        """Items and tokens were computed for a request."""
        self._items.add(items)
        self._tokens.add(tokens)
