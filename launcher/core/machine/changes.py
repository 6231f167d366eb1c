"""Decides what a change of the machine means for a running server: what is different, and whether the plan fits.

Separate from the watch, which reads and acts, so that every change can be tested without one. The server makes the new
plan with the planner; only the order in which options are given up when they no longer fit is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.core.machine.assemble import usable_cpus
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.options.choices import IsolatedPolicy

Cpus = tuple[int, ...]
Part = Literal["cpus", "cpu_quota", "memory_nodes", "memory_limit"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a process may use: ``cpus`` are allowed, online and not isolated; ``cpu_quota`` is in cpus. None: no limit,
    or unknown."""

    cpus: Cpus
    cpu_quota: float | None = None
    memory_nodes: Cpus | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a plan uses: the cpus and memory nodes of its instances, and the memory that they are expected to need."""

    cpus: Cpus
    memory_nodes: Cpus = ()
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FrontMasks:
    """Affinity masks at one moment: that of the front, the one that it has given itself (None: it has not bound
    itself), and all cpus that its cpuset allows."""

    front: Cpus
    bound: Cpus | None
    allowed: Cpus


def capacity_of(machine: Machine, policy: IsolatedPolicy) -> Capacity:
    """The capacity of a machine as it was read."""
    limits = machine.limits
    cpus = tuple(sorted(usable_cpus(machine.allowed, machine.isolated, policy)))
    return Capacity(cpus, limits.cpu_quota, limits.memory_nodes, limits.memory_bytes)


def affinity_limit(masks: FrontMasks, before: Cpus | None, isolated: Sequence[int]) -> Cpus | None:
    """The cpus that somebody has restricted the server to with its affinity mask; None: no restriction.

    ``before`` is the restriction so far. A front that has bound itself has its own mask, or what the cpuset leaves of
    it. Any other mask comes from outside: from ``taskset -p``, or from the kernel, which gives a thread the whole
    cpuset when no cpu of its mask is left. A mask with all shared cpus of the cpuset does not restrict anything.
    """
    if masks.bound is not None:
        left = tuple(cpu for cpu in masks.bound if cpu in masks.allowed)
        if masks.front in (masks.bound, left):
            return before
    return restriction(masks.front, masks.allowed, isolated)


def restriction(mask: Cpus, allowed: Cpus, isolated: Sequence[int]) -> Cpus | None:
    """The mask, or None if it has every allowed cpu; the kernel leaves isolated cpus out of masks by itself."""
    return None if set(mask) >= set(allowed) - set(isolated) else mask


def differences(before: Capacity, now: Capacity, online: Sequence[int]) -> Mapping[Part, str]:
    """What has changed, each part in words. ``online`` are the cpus that are online now."""
    found: dict[Part, str] = {}
    if before.cpus != now.cpus:
        found["cpus"] = f"cpus {format_cpu_list(before.cpus)} -> {format_cpu_list(now.cpus) or 'none'}"
        if offline := set(before.cpus) - set(now.cpus) - set(online):
            found["cpus"] += f" (offline: {format_cpu_list(offline)})"
    if before.cpu_quota != now.cpu_quota:
        found["cpu_quota"] = f"cpu quota {_cpus_text(before.cpu_quota)} -> {_cpus_text(now.cpu_quota)}"
    if before.memory_nodes != now.memory_nodes:
        found["memory_nodes"] = f"memory nodes {_nodes_text(before.memory_nodes)} -> {_nodes_text(now.memory_nodes)}"
    if before.memory_bytes != now.memory_bytes:
        found["memory_limit"] = f"memory limit {_bytes_text(before.memory_bytes)} -> {_bytes_text(now.memory_bytes)}"
    return found


def shortfalls(usage: Usage, now: Capacity) -> tuple[str, ...]:
    """Why a plan does not fit the machine, each reason in words; empty if it fits."""
    found = []
    if lost := set(usage.cpus) - set(now.cpus):
        found.append(f"the plan uses cpus {format_cpu_list(lost)}, which are no longer available")
    if now.cpu_quota is not None and len(usage.cpus) > max(1, int(now.cpu_quota)):
        found.append(f"the plan uses {len(usage.cpus)} cpus, and the cpu quota allows {now.cpu_quota:g}")
    if now.memory_nodes is not None and (nodes := set(usage.memory_nodes) - set(now.memory_nodes)):
        found.append(f"the plan uses memory of node {format_cpu_list(nodes)}, which is no longer allowed")
    if now.memory_bytes is not None and usage.memory_bytes is not None and usage.memory_bytes > now.memory_bytes:
        need, limit = _bytes_text(usage.memory_bytes), _bytes_text(now.memory_bytes)
        found.append(f"the instances are expected to need {need}, and the memory limit is {limit}")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Seen:
    """The decision after a reading: ``report`` if it is the first of a new state, ``replan`` if a new plan is due."""

    report: bool
    replan: bool


class ChangeDetector:
    """Decides when a change counts: after two equal readings, and at most one new plan per ``interval`` (seconds).

    ``planned`` is the capacity that the plan in effect accounts for.
    """

    def __init__(self, planned: Capacity) -> None:
        self.planned = planned
        self.reported = planned
        # Whether the last two readings agree.
        self.settled = True
        self._last: Capacity | None = None
        self._not_before = float("-inf")

    def observe(self, now: Capacity, at: float) -> Seen:
        """A reading at the time ``at``, in seconds of any clock that never goes back."""
        self.settled = settled = now == self._last
        self._last = now
        report = settled and now != self.reported
        if report:
            self.reported = now
        return Seen(report, settled and now != self.planned and at >= self._not_before)

    def accounted(self, capacity: Capacity, at: float, interval: float) -> None:
        """The plan accounts for this capacity now; the next new plan is due after ``interval``."""
        self.planned = capacity
        self._not_before = at + interval

    def failed(self, at: float, interval: float) -> None:
        """No plan for the present capacity could be put into effect; the next attempt is due after ``interval``."""
        self._not_before = at + interval


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that determine the instances, as the operator has set them; None: the planner decides."""

    instances: int | None = None
    cores_per_instance: int | None = None
    classes: str | None = None
    reserve_cores: int | None = None


def fallbacks(asked: Asked, cores: int) -> Iterator[Mapping[str, object]]:
    """Changes of the options to try one after another until a plan is possible on ``cores`` cores: first none, then
    ever fewer instances, at last without ``reserve_cores``.

    As many instances as fit are tried first, then halves of that, because memory can be the reason as well.
    """
    yield {}
    reserved = min(asked.reserve_cores or 0, max(0, cores - 1))
    size = min(asked.cores_per_instance or 1, max(1, cores - reserved))
    count = min(_count(asked), max(1, (cores - reserved) // size))
    keep = {"cores_per_instance": asked.cores_per_instance} if size == asked.cores_per_instance else {}
    while count:
        yield {"instances": count, **keep}
        count //= 2
    yield {"instances": 1, "reserve_cores": 0}


def _count(asked: Asked) -> int:
    """The number of instances that the options ask for; very many if only their size is given."""
    if asked.classes and asked.classes != "auto":
        return len(asked.classes.split(","))
    return asked.instances or 1 << 16


def _cpus_text(quota: float | None) -> str:
    return "none" if quota is None else f"{quota:g} cpus"


def _nodes_text(nodes: Cpus | None) -> str:
    return "all" if nodes is None else format_cpu_list(nodes) or "none"


def _bytes_text(size: int | None) -> str:
    return "none" if size is None else f"{size / GIB:.2f} GiB"
