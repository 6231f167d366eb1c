"""A rolling change: in which order instances are replaced, and how the change ends.

A change replaces all instances of a plan, by those of the same plan (a restart) or of another one, while the server
answers requests. `restart_steps` and `replace_steps` decide the order; the table says what can follow what. The engine
carries the steps out; processes and clocks do not belong here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Literal

from launcher.core.lifecycle.transitions import TransitionTable
from launcher.core.planning.length_classes import LengthClass
from launcher.options.choices import ChangeOrder

ChangeState = Literal["retiring", "starting", "restoring", "new", "old"]
ChangeGuard = Literal["more to do", "nothing left"]
# How new instances start: next to the old ones, or each in place of an old one; auto: next to them if memory allows.
Order = ChangeOrder


@dataclass(frozen=True, slots=True)
class Retired:
    """The old instances of a step have finished their batches and stopped."""


@dataclass(frozen=True, slots=True)
class NewReady:
    """The new instances of a step are ready and get batches."""


@dataclass(frozen=True, slots=True)
class NewFailed:
    """A new instance did not become ready."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The old instances have been started again, and the new ones are gone."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The server is shutting down: no other instance is replaced."""


ChangeEvent = Retired | NewReady | NewFailed | Restored | Interrupted

CHANGE_STATES: Mapping[ChangeState, str] = MappingProxyType(
    {
        "retiring": "Old instances get no more batches, finish those they have, and stop. Others serve.",
        "starting": "New instances are loading. Old ones that have not been replaced yet serve.",
        "restoring": "A new instance has failed: the new ones stop, and old ones that have stopped are started again.",
        "new": "All instances are the new ones.",
        "old": "The instances are the old ones, as before the change.",
    }
)

CHANGE_GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "more to do": "Instances are left to start or to stop.",
        "nothing left": "All new instances are ready, and all old ones have stopped.",
    }
)

CHANGE_TRANSITIONS: TransitionTable[ChangeState] = TransitionTable(
    "a change",
    CHANGE_STATES,
    CHANGE_GUARDS,
    MappingProxyType(
        {
            "retiring": {
                Retired: {"more to do": "starting", "nothing left": "new"},
                Interrupted: "old",
            },
            "starting": {
                NewReady: {"more to do": "retiring", "nothing left": "new"},
                NewFailed: "restoring",
                Interrupted: "old",
            },
            "restoring": {
                Restored: "old",
                Interrupted: "old",
            },
            "new": {},
            "old": {},
        }
    ),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a change. ``first`` are ids of old instances that stop before the new ones start, ``last`` those that
    stop when the new ones are ready. ``start`` maps the position of a new instance in its plan to its id.
    """

    first: tuple[int, ...]
    start: Mapping[int, int]
    last: tuple[int, ...] = ()


def restart_steps(old: Sequence[tuple[int, LengthClass | None]], *, beside: bool) -> tuple[Step, ...]:
    """The steps of a restart, one for each instance (id and class): the old one stops, then the new one starts.

    The only instance of its class is different, if memory allows two (``beside``): the new one starts first.
    """
    in_class = Counter(length_class for _, length_class in old)
    used = {id for id, _ in old}
    steps: list[Step] = []
    for position, (id, length_class) in enumerate(old):
        first = beside and in_class[length_class] == 1
        new = _new_id(position, used if first else used - {id})
        used = used - {id} | {new}
        steps.append(Step((), {position: new}, (id,)) if first else Step((id,), {position: new}))
    return tuple(steps)


def replace_steps(old: Sequence[int], new: int, *, beside: bool) -> tuple[Step, ...]:
    """The steps from the instances with the ids ``old`` to ``new`` others.

    If memory allows (``beside``), all new ones start next to the old ones. Otherwise each takes the place of an old
    one; the old ones that are left stop in the last step, and new ones without a predecessor start in it.
    """
    used = set(old)
    if beside:
        return (Step((), _start(range(new), used), tuple(old)),)
    steps: list[Step] = []
    pairs = min(len(old), new)
    for position, id in enumerate(old[:pairs]):
        used.discard(id)
        steps.append(Step((id,), _start([position], used)))
    if pairs < max(len(old), new):
        steps.append(Step(tuple(old[pairs:]), _start(range(pairs, new), used)))
    return tuple(steps)


def _start(positions: Iterable[int], used: set[int]) -> dict[int, int]:
    """The ids of new instances, which are added to ``used``."""
    ids: dict[int, int] = {}
    for position in positions:
        ids[position] = _new_id(position, used)
        used.add(ids[position])
    return ids


def _new_id(position: int, used: Collection[int]) -> int:
    """The id of a new instance: its position in the plan if no other instance has that now, else the lowest free."""
    return position if position not in used else next(id for id in count() if id not in used)
