"""A state machine as a table: the transitions of each state, and how the table is drawn.

Both lifecycles are such tables. The effects of an event on the rest of a record (counters, deadlines, actions) are
defined next to each table, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from launcher.errors import LauncherError

StateT = TypeVar("StateT", bound=str)


class IllegalTransition(LauncherError):
    """This event cannot happen in this state; the state is unchanged."""


@dataclass(frozen=True, slots=True)
class TransitionTable(Generic[StateT]):
    """All states and guards, each with a sentence, and all transitions.

    ``rows`` holds, for each state, the events that can happen in it. An event leads to one state, or, if that depends
    on a guard, to one state per guard. The first state of ``states`` is the initial one; states without an event are
    final.
    """

    subject: str
    states: Mapping[StateT, str]
    guards: Mapping[str, str]
    rows: Mapping[StateT, Mapping[type, StateT | Mapping[str, StateT]]]

    @property
    def initial(self) -> StateT:
        """The state in which every instance begins."""
        return next(iter(self.states))

    @property
    def final(self) -> frozenset[StateT]:
        """The states without outgoing transitions."""
        return frozenset(state for state, row in self.rows.items() if not row)

    def accepts(self, state: StateT, event: type) -> bool:
        """Whether this event is legal in this state."""
        return event in self.rows[state]

    def next_state(self, state: StateT, event: type, guard: str) -> StateT:
        """The next state; ``guard`` is the condition that holds now, which matters only for guarded events.

        Raises ``IllegalTransition`` if the table has no such transition.
        """
        targets = dict(self.targets(state, event))
        target = targets.get("", targets.get(guard))
        if target is None:
            legal = ", ".join(sorted(kind.__name__ for kind in self.rows[state])) or "nothing"
            what = f"{event.__name__} [{guard}]" if targets else event.__name__
            raise IllegalTransition(
                f"{what} is not possible for {self.subject} in state {state}; possible events: {legal}"
            )
        return target

    def targets(self, state: StateT, event: type) -> Iterator[tuple[str, StateT]]:
        """The transitions of an event in a state, as (guard, next state); the guard is empty if there is none."""
        target = self.rows[state].get(event)
        if isinstance(target, Mapping):
            yield from target.items()
        elif target is not None:
            yield "", target

    def transitions(self) -> Iterator[tuple[StateT, type, str, StateT]]:
        """Every row of the table: state, event, guard, next state."""
        for state, row in self.rows.items():
            for event in row:
                for guard, target in self.targets(state, event):
                    yield state, event, guard, target

    def mermaid(self) -> str:
        """The table as a mermaid state diagram; guards are in square brackets, as in UML."""
        arrows: dict[tuple[StateT, StateT], list[str]] = {}
        for state, event, guard, target in self.transitions():
            label = f"{event.__name__} [{guard}]" if guard else event.__name__
            arrows.setdefault((state, target), []).append(label)
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial}"]
        lines += [f"    {state} --> {target}: {', '.join(labels)}" for (state, target), labels in arrows.items()]
        return "\n".join(lines + [f"    {state} --> [*]" for state in self.states if state in self.final]) + "\n"

    def markdown(self) -> str:
        """The diagram, the states, the events and the guards, for ``docs/state-machines.md``."""
        kinds = dict.fromkeys(event for _, event, _, _ in self.transitions())
        events = {event.__name__: _first_paragraph(event) for event in kinds}
        parts = [
            f"```mermaid\n{self.mermaid()}```\n",
            _table("state", {f"`{name}`": why for name, why in self.states.items()}),
        ]
        parts.append(_table("event", {f"`{name}`": why for name, why in events.items()}))
        parts.append(_table("guard", {f"[{name}]": why for name, why in self.guards.items()}))
        return "\n".join(parts)


def _table(kind: str, sentences: Mapping[str, str]) -> str:
    rows = "".join(f"| {name} | {sentence} |\n" for name, sentence in sentences.items())
    return f"| {kind} | meaning |\n|---|---|\n{rows}"


def _first_paragraph(event: type) -> str:
    return " ".join((event.__doc__ or "").split("\n\n")[0].split())
