"""Carries out a rolling change: replaces the instances of a running engine, step by step, while it answers requests.

`core.lifecycle.change` decides the order and what can follow what; this module waits for batches, workers and
failures. It is separate from the engine because a change is a course of events with its own state, whereas the engine
reacts to single ones. Only one change runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from launcher.core.lifecycle.change import (
    CHANGE_TRANSITIONS,
    ChangeEvent,
    ChangeGuard,
    ChangeState,
    Interrupted,
    NewFailed,
    NewReady,
    Restored,
    Retired,
    Step,
)
from launcher.engine.configuration import Configuration
from launcher.prepare.prepared_instances import PreparedInstance, renumbered

log = logging.getLogger("launcher.engine")

Kind = Literal["restart", "plan"]
# None when the instance is ready, otherwise why it is not.
Outcome = asyncio.Future["str | None"]

SHUTTING_DOWN = "the server is shutting down"


class Instances(Protocol):
    """What a change needs of the engine."""

    @property
    def draining(self) -> bool:
        """Whether the engine is shutting down."""

    def begin_start(self, one: PreparedInstance, configuration: Configuration, *, standby: bool) -> Outcome:
        """Start an instance; with ``standby`` it gets no batches before `admit`, and is given up after few failures."""

    def admit(self, instance: int) -> None:
        """Give batches to an instance that was started on standby."""

    async def retire(self, instance: int) -> None:
        """Let an instance finish its batches, and stop it; returns when its worker has exited."""


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """How a change ended: in the ``new`` state or in the ``old`` one, with the reason."""

    kind: Kind
    state: Literal["new", "old"]
    reason: str | None
    instances: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Target:
    """What a change leads to, and how: ``steps`` start the instances of ``configuration``.

    ``same``: it is the present configuration, so that instances that have been restarted need not be restored.
    """

    kind: Kind
    configuration: Configuration
    steps: Sequence[Step]
    same: bool


class RollingChange:
    """One change. ``old`` maps the id of each present instance to what it was started with."""

    def __init__(
        self, instances: Instances, old: Mapping[int, tuple[PreparedInstance, Configuration]], target: Target
    ) -> None:
        self.state: ChangeState = CHANGE_TRANSITIONS.initial
        self.reason: str | None = None
        self.target = target
        # The new instances that are in place, by id.
        self.new: dict[int, PreparedInstance] = {}
        self._instances = instances
        self._old = old
        self._left = dict(old)
        self._done = 0
        self._began, self._began_at = time.monotonic(), time.time()
        self._ended: float | None = None

    async def run(self) -> None:
        """Carry the change out. When it returns, ``state`` is ``new``, or ``old`` with a ``reason``."""
        steps = self.target.steps
        last: tuple[int, ...] = ()
        for step in steps:
            if self._interrupted():  # while it was prepared: those that serve must serve on
                return
            await self._retire((*last, *step.first))
            if self._interrupted():
                return
            self._event(Retired(), "more to do")
            if not await self._start(step):
                return
            last = step.last
            self._done += 1
            more = self._done < len(steps) or bool(last)
            self._event(NewReady(), "more to do" if more else "nothing left")
        if self.state == "retiring":
            await self._retire(last)
            self._event(Retired(), "nothing left")

    def interrupt(self) -> None:
        """Record that the engine has ended in the middle of the change."""
        if self.state not in CHANGE_TRANSITIONS.final:
            self._end(SHUTTING_DOWN, Interrupted())

    def _interrupted(self) -> bool:
        """Whether the change must end because the engine is shutting down. If no other instance is left to compute what
        has been admitted, a new one is started all the same."""
        if self._instances.draining and (self._left or self.new):
            self.interrupt()
            return True
        return False

    async def _retire(self, ids: Iterable[int]) -> None:
        retiring = [id for id in ids if id in self._left]
        await asyncio.gather(*(self._instances.retire(id) for id in retiring))
        for id in retiring:
            del self._left[id]

    async def _start(self, step: Step) -> bool:
        """Start the new instances of a step; returns whether all are ready. If not, the old ones are restored."""
        prepared = self.target.configuration.prepared.instances
        ones = [renumbered(prepared[position], id) for position, id in step.start.items()]
        outcomes = [self._instances.begin_start(one, self.target.configuration, standby=True) for one in ones]
        failure = await _first_failure(outcomes)
        if self._instances.draining:
            for one, outcome in zip(ones, outcomes, strict=True):
                if outcome.done() and outcome.result() is None:
                    self._admit(one)
            self.interrupt()
            return False
        if failure is None:
            for one in ones:
                self._admit(one)
            return True
        self._event(NewFailed())
        await self._restore(step, failure)
        return False

    def _admit(self, one: PreparedInstance) -> None:
        self._instances.admit(one.plan.id)
        self.new[one.plan.id] = one

    async def _restore(self, failed: Step, failure: str) -> None:
        """Stop new instances and start the old ones in their places, in reverse order, so that others serve meanwhile;
        of a restart with the same configuration only those of the step that failed."""
        log.error("A new instance did not become ready: %s; restoring", failure, extra={"event": "change"})
        done = [] if self.target.same else self.target.steps[: self._done]
        for step in (failed, *reversed(done)):
            await asyncio.gather(*(self._instances.retire(id) for id in step.start.values()))
            for id in step.start.values():
                self.new.pop(id, None)
            missing = [id for id in (*step.first, *step.last) if id not in self._left]
            outcomes = [self._instances.begin_start(*self._old[id], standby=False) for id in missing]
            self._left.update({id: self._old[id] for id in missing})
            if (again := await _first_failure(outcomes)) is not None:
                failure += f"; an old instance did not become ready again either: {again}"
        self._end(failure, Restored())

    def _end(self, reason: str, event: ChangeEvent) -> None:
        self.reason = reason
        self._event(event)

    def _event(self, event: ChangeEvent, guard: ChangeGuard = "nothing left") -> None:
        self.state = CHANGE_TRANSITIONS.next_state(self.state, type(event), guard)
        if self.state in CHANGE_TRANSITIONS.final:
            self._ended = time.monotonic()
        level = logging.ERROR if self.state == "old" else logging.INFO
        message = f"{self.target.kind}: {self.state}, {self._done} of {len(self.target.steps)} steps done"
        if self.reason is not None:
            message += f"; {self.reason}"
        log.log(level, "%s", message, extra={"event": "change", "kind": self.target.kind, "state": self.state})

    @property
    def instances(self) -> tuple[int, ...]:
        """The ids of the instances in place, old and new."""
        return tuple(sorted({*self._left, *self.new}))

    def result(self) -> ChangeResult:
        """How the change ended."""
        assert self.state in ("new", "old"), "the change has not ended"
        seconds = (self._ended or time.monotonic()) - self._began
        state: Literal["new", "old"] = "new" if self.state == "new" else "old"
        return ChangeResult(self.target.kind, state, self.reason, self.instances, round(seconds, 3))

    def status(self) -> dict[str, Any]:
        """The change as it is now, for ``GET /admin/change``."""
        return {
            "kind": self.target.kind,
            "state": self.state,
            "reason": self.reason,
            "steps_done": self._done,
            "steps": len(self.target.steps),
            "instances": list(self.instances),
            "started": self._began_at,
            "seconds": round((self._ended or time.monotonic()) - self._began, 3),
        }


async def _first_failure(outcomes: Sequence[Outcome]) -> str | None:
    """Wait until all instances are ready, or one has failed; returns why it has."""
    pending = set(outcomes)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for outcome in done:
            if (reason := outcome.result()) is not None:
                return reason
    return None
