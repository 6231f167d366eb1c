"""Checks that apply to every transition table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from launcher.core.lifecycle.transitions import TransitionTable

StateT = TypeVar("StateT", bound=str)


def check_table(
    table: TransitionTable[StateT], states: Sequence[StateT], events: Sequence[type], guards: Sequence[str]
) -> None:
    """Every state, event and guard occurs, every state can be reached and left, and everything is documented."""
    rows = list(table.transitions())
    assert set(table.rows) == set(table.states) == set(states)
    assert {event for _, event, _, _ in rows} == set(events)
    assert {guard for _, _, guard, _ in rows if guard} == set(table.guards) == set(guards)
    assert {target for *_, target in rows} <= set(states)
    _check_paths(table, states)
    assert all(sentence.endswith(".") for sentence in (*table.states.values(), *table.guards.values()))
    assert all(event.__doc__ and not event.__doc__.startswith(event.__name__) for event in events)
    _check_drawing(table)


def _check_paths(table: TransitionTable[StateT], states: Sequence[StateT]) -> None:
    arrows = {(state, target) for state, _, _, target in table.transitions()}
    reached = {table.initial}
    while new := {target for state, target in arrows if state in reached} - reached:
        reached |= new
    assert reached == set(states)
    ending = set(table.final)
    while new := {state for state, target in arrows if target in ending} - ending:
        ending |= new
    assert ending == set(states), "every state leads to a final one"


def _check_drawing(table: TransitionTable[StateT]) -> None:
    lines = table.mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", f"    [*] --> {table.initial}"]
    drawn = set()
    for line in lines[2:]:
        arrow, _, labels = line.strip().partition(": ")
        drawn |= {(arrow, label) for label in labels.split(", ")}
    wanted = {(f"{state} --> [*]", "") for state in table.final}
    for state, event, guard, target in table.transitions():
        wanted.add((f"{state} --> {target}", f"{event.__name__} [{guard}]" if guard else event.__name__))
    assert drawn == wanted
