"""Watches the machine while the server runs: makes another plan when it has changed, and binds threads that were moved.

``core.machine.changes`` decides what a change means, ``host.machine.capacity`` reads, and a new plan goes through the
same actions as one that an administrator asks for. docs/changes.md describes what users can rely on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from launcher.core.machine.assemble import usable_cpus
from launcher.core.machine.changes import (
    Asked,
    Capacity,
    ChangeDetector,
    FrontMasks,
    Seen,
    Usage,
    affinity_limit,
    capacity_of,
    differences,
    fallbacks,
    restriction,
    shortfalls,
)
from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.machine.topology import Machine
from launcher.core.planning.footprint import instance_bytes
from launcher.engine.configuration import Configuration
from launcher.engine.inference_engine import InferenceEngine, places
from launcher.errors import ChangeInProgressError, LauncherError, MachineError, UsageError
from launcher.host.machine.capacity import CapacityReader, Reading
from launcher.host.process.rebind import Moved, bind_again
from launcher.host.process.spawn_worker import masked
from launcher.host.registry import Held
from launcher.options import MachineOptions, WatchOptions
from launcher.prepare.machine import load_machine
from launcher.prepare.memory_beside import without_instances
from launcher.serve.administration import EngineActions
from launcher.serve.process_setup import FrontBinding

log = logging.getLogger("launcher.serve")

# Between two readings; the second, which must agree with the first, follows soon after a difference.
SECONDS = 2.0
AGREE_SECONDS = 0.25
# After an attempt that failed.
RETRY_SECONDS = 60.0
# Between two lines of the log about moved threads of the same process.
REPEAT_SECONDS = 60.0

Result = TypeVar("Result")
# Id, process and planned cpus of instances.
Bindings = Sequence[tuple[int, int, tuple[int, ...]]]


class MachineWatch:
    """The watch of one server. ``options`` can be replaced while it runs."""

    def __init__(
        self, engine: InferenceEngine, actions: EngineActions, front: FrontBinding, options: WatchOptions
    ) -> None:
        self.options = options
        self._engine = engine
        self._actions = actions
        self._front = front
        machine = engine.prepared.machine
        self._policy = engine.configuration.options.machine.isolated
        self._isolated = machine.isolated
        self._reader = CapacityReader(machine)
        self._detector = ChangeDetector(capacity_of(machine, self._policy))
        self._now = self._detector.planned
        self._limit: tuple[int, ...] | None = None
        self._front_was: tuple[int, ...] | None = None
        self._first = True
        self._replanning = False
        self._last_failure = ""
        self._last_change: dict[str, Any] | None = None
        # The options as the operator has set them, and those of the plan that was made instead.
        self._asked: MachineOptions | None = None
        self._instead: MachineOptions | None = None
        # Why the options as asked do not fit the machine that the plan accounts for.
        self._refusal: tuple[str, ...] = ()
        self._quiet_until: dict[int, float] = {}
        # Its own thread, whose affinity mask changes for each reading.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="launcher machine")
        engine.metrics.watch(
            "launcher_plan_degraded",
            "1 if the plan is not the one asked for, or does not fit the machine as it is now, otherwise 0.",
            lambda: bool(actions.degraded),
        )

    def status(self) -> dict[str, Any]:
        """The machine as it is now, for ``/info``."""
        now, degraded = self._now, self._actions.degraded
        changed = "changed" if now != self._detector.planned else "planned"
        return {
            "state": "changing" if self._replanning else "degraded" if degraded else changed,
            "cpus": format_cpu_list(now.cpus),
            "cpu_quota": now.cpu_quota,
            "memory_nodes": None if now.memory_nodes is None else format_cpu_list(now.memory_nodes),
            "memory_limit_bytes": now.memory_bytes,
            "degraded": list(degraded),
            "last_change": self._last_change,
        }

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                while not self._engine.draining:
                    try:
                        await self._look(group)
                    except Exception as error:  # such as a lack of threads: the server must go on
                        self._log_failure(error)
                    await anyio.sleep(SECONDS if self._detector.settled else AGREE_SECONDS)
        finally:
            self._thread.shutdown(wait=False)

    def _log_failure(self, error: Exception) -> None:
        level = logging.DEBUG if str(error) == self._last_failure else logging.WARNING
        self._last_failure = str(error)
        message = "The limits of the machine could not be read; trying again: %s"
        log.log(level, message, error, extra={"event": "warning"})

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _look(self, group: TaskGroup) -> None:
        bindings = self._engine.bindings()
        reading, moved = await self._in_thread(lambda: self._read(bindings))
        self._report_moved(moved)
        now = self._capacity(reading)
        at = time.monotonic()
        seen = self._detector.observe(now, at)
        if seen.report:
            self._report(now, reading)
        if self._refusal and self._engine.configuration.options.machine is not self._instead:
            self._refusal = self._actions.degraded = ()  # an administrator has asked for another plan
        if self.options.on_machine_change == "report":
            await self._only_report(now, seen)
        elif seen.replan:
            if not (self._replanning or self._engine.changing or self._engine.draining):
                self._replanning = True
                group.start_soon(self._replan, now)
        elif seen.report and now == self._detector.planned:
            self._actions.degraded = self._refusal

    def _update_limit(self, reading: Reading) -> bool:
        """Returns whether the front has been moved, though not to restrict it."""
        masks = FrontMasks(reading.front, self._front.bound, reading.allowed)
        if self._first:
            self._first = False
            self._limit = restriction(self._front.mask or reading.front, reading.allowed, self._isolated)
        else:
            self._limit = affinity_limit(masks, self._limit, self._isolated)
        # While it starts a worker, the front has the worker's mask for a moment.
        lasting, self._front_was = reading.front == self._front_was, reading.front
        unrestricted = restriction(reading.front, reading.allowed, self._isolated) is None
        return lasting and masks.bound is not None and reading.front != masks.bound and unrestricted

    def _mask(self, allowed: tuple[int, ...]) -> set[int]:
        if self._limit is None:
            return set(allowed)
        widened = set(self._isolated) if self._policy == "use" else set()
        return set(allowed) & (set(self._limit) | widened)

    def _capacity(self, reading: Reading) -> Capacity:
        cpus = usable_cpus(self._mask(reading.allowed), self._isolated, self._policy)
        limits = reading.limits
        return Capacity(tuple(sorted(cpus)), limits.cpu_quota, limits.memory_nodes, limits.memory_bytes)

    def _report(self, now: Capacity, reading: Reading) -> None:
        parts = differences(self._now, now, reading.online)
        self._now = now
        what = "; ".join(parts.values()) or "as planned again"
        self._last_change = {"time": time.time(), "what": what}
        for part in parts:
            self._engine.metrics.machine_changes.labels(part).add()
        problems = shortfalls(self._usage(), now)
        log.warning(
            "the machine has changed: %s", "; ".join((what, *problems)),
            extra={"event": "machine_changed", "parts": list(parts)},
        )  # fmt: skip

    def _usage(self) -> Usage:
        prepared = self._engine.prepared
        instances = prepared.plan.instances
        bound = {node for one in instances if one.memory != "local" for node in one.nodes}
        each = None if prepared.model_info is None else instance_bytes(prepared.model_info)
        cpus = {cpu for one in instances for cpu in one.cpus}
        return Usage(tuple(sorted(cpus)), tuple(sorted(bound)), None if each is None else each * len(instances))

    # ------------------------------------------------------------- another plan

    async def _read_machine(self, now: Capacity) -> Machine:
        options = self._engine.configuration.options.machine

        def read() -> Machine:
            with masked(now.cpus if self._limit is not None else self._reader.possible):
                return load_machine(options)

        machine = await self._in_thread(read)
        prepared = self._engine.prepared
        if prepared.model_info is not None:
            machine = without_instances(machine, prepared.model_info, prepared.instances)
        self._front.allow(machine.allowed)
        if self._front.mask is not None:
            self._engine.set_mask(self._front.mask)
        self._actions.machine, self._actions.mask = machine, machine.allowed
        return machine

    async def _only_report(self, now: Capacity, seen: Seen) -> None:
        """Leave the plan as it is. Plans that an administrator asks for are for the machine as it is now."""
        if seen.report or seen.replan:
            self._actions.degraded = shortfalls(self._usage(), now)
        if seen.report:
            await self._read_machine(now)

    async def _replan(self, now: Capacity) -> None:
        try:
            problem = await self._try_replan(now)
        except ChangeInProgressError:
            return  # the next reading tries again
        except Exception as error:  # of the plan, or a lack of threads or descriptors: the server must go on
            if not isinstance(error, LauncherError):
                log.exception("another plan could not be made", extra={"event": "warning"})
            problem = str(error)
        finally:
            self._replanning = False
        at = time.monotonic()
        if problem is None:
            self._detector.accounted(now, at, self.options.replan_seconds)
        elif not self._engine.draining:
            self._detector.failed(at, max(RETRY_SECONDS, self.options.replan_seconds))
            reasons = tuple(dict.fromkeys((*shortfalls(self._usage(), now), problem)))
            level = logging.DEBUG if reasons == self._actions.degraded else logging.ERROR
            self._actions.degraded = reasons
            message = "the plan stays as it is, though the machine has changed: %s"
            log.log(level, message, "; ".join(reasons), extra={"event": "machine_degraded"})

    async def _try_replan(self, now: Capacity) -> str | None:
        """Returns why no plan for the machine as it is now is in effect, or None."""
        machine = await self._read_machine(now)
        present = self._engine.configuration.options.machine
        asked = self._asked if self._asked is not None and present is self._instead else present
        configuration, held, refusal = await self._possible(asked, machine)
        if places(configuration.prepared) == places(self._engine.prepared):
            self._actions.discard(held)
            log.info("the plan stays the same on the changed machine", extra={"event": "machine_unchanged_plan"})
        else:
            result = await self._actions.apply(configuration, held, "auto")
            if result.state == "old":
                return result.reason
            self._asked, self._instead = asked, configuration.options.machine
            log.info(
                "the plan for the changed machine is in effect after %.1f s, with %d instances",
                result.seconds, len(result.instances), extra={"event": "machine_replanned"},
            )  # fmt: skip
        refusals = () if refusal is None else (f"the options do not fit the machine as it is now: {refusal}",)
        if refusals and refusals != self._refusal:
            log.warning("%s", refusals[0], extra={"event": "machine_degraded"})
        self._refusal = self._actions.degraded = refusals
        return None

    async def _possible(self, asked: MachineOptions, machine: Machine) -> tuple[Configuration, Held, str | None]:
        """The first configuration that is possible, and why that with the options as asked is not. Raises the reason
        if none is possible."""
        refusal: LauncherError | None = None
        options = Asked(asked.instances, asked.cores_per_instance, asked.classes, asked.reserve_cores)
        tried: list[Mapping[str, object]] = []
        for given in fallbacks(options, _cores(machine)):
            if given in tried:
                continue
            tried.append(given)
            try:
                configuration, held = await self._actions.configuration(given, asked)
            except (MachineError, UsageError) as error:
                refusal = refusal or error
                continue
            return configuration, held, None if refusal is None else str(refusal)
        assert refusal is not None, "the first attempt has been refused"
        raise refusal

    # ------------------------------------------------------------ moved threads

    def _read(self, bindings: Bindings) -> tuple[Reading, list[tuple[str, int, Moved]]]:
        """Read, and bind the threads of workers, and of the front, that are not where they were bound. In the thread
        of the watch, while its task waits."""
        reading = self._reader.read()
        targets = [(f"instance {id}", pid, cpus) for id, pid, cpus in bindings]
        if self._update_limit(reading) and self._front.bound is not None:
            targets.append(("the front", os.getpid(), self._front.bound))
        found = ((name, pid, bind_again(pid, cpus, reading.allowed)) for name, pid, cpus in targets)
        return reading, [(name, pid, moved) for name, pid, moved in found if moved is not None]

    def _report_moved(self, found: Sequence[tuple[str, int, Moved]]) -> None:
        at = time.monotonic()
        for name, pid, moved in found:
            if moved.problem is None:
                self._engine.metrics.rebound_threads.add(moved.threads)
            if at >= self._quiet_until.get(pid, 0.0):
                self._quiet_until = {**{p: t for p, t in self._quiet_until.items() if t > at}, pid: at + REPEAT_SECONDS}
                self._log_moved(name, pid, moved)

    def _log_moved(self, name: str, pid: int, moved: Moved) -> None:
        result = "were bound again" if moved.problem is None else f"could not be bound again ({moved.problem})"
        log.warning(
            "%s: %d threads of pid %d were moved to cpus %s and %s to cpus %s", name, moved.threads, pid,
            format_cpu_list(moved.found), result, format_cpu_list(moved.bound_to), extra={"event": "rebound"},
        )  # fmt: skip


def _cores(machine: Machine) -> int:
    """The cores that a plan may use: all, or as many as the cpu quota allows."""
    quota = machine.limits.cpu_quota
    return len(machine.cores) if quota is None else max(1, min(len(machine.cores), int(quota)))
