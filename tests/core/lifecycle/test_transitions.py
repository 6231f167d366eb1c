"""Transition tables: plain and guarded events, illegal ones, and the drawing."""

from __future__ import annotations

from typing import Literal

import pytest

from launcher.core.lifecycle.transitions import IllegalTransition, TransitionTable


class Pushed:
    """Somebody has pushed
    the door.

    Not drawn.
    """


class Locked:
    """The door is locked."""


DOOR: TransitionTable[Literal["closed", "open", "gone"]] = TransitionTable(
    "a door",
    {"closed": "It is closed.", "open": "It is open.", "gone": "There is none."},
    {"gently": "It holds.", "hard": "It breaks."},
    {"closed": {Pushed: {"gently": "open", "hard": "gone"}, Locked: "closed"}, "open": {Locked: "closed"}, "gone": {}},
)


def test_a_guard_decides_where_an_event_leads() -> None:
    assert DOOR.next_state("closed", Pushed, "gently") == "open"
    assert DOOR.next_state("closed", Pushed, "hard") == "gone"
    assert DOOR.next_state("open", Locked, "hard") == "closed", "an event without guards ignores the guard"
    assert (DOOR.initial, DOOR.final) == ("closed", {"gone"})


@pytest.mark.parametrize(
    ("state", "event", "guard", "message"),
    [
        ("open", Pushed, "hard", "Pushed is not possible for a door in state open; possible events: Locked"),
        ("gone", Locked, "hard", "Locked is not possible for a door in state gone; possible events: nothing"),
        ("closed", Pushed, "twice", r"Pushed \[twice\] is not possible .*; possible events: Locked, Pushed"),
    ],
)
def test_a_transition_that_is_not_in_the_table_is_refused(state, event, guard, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(IllegalTransition, match=f"^{message}$"):
        DOOR.next_state(state, event, guard)


def test_the_document_has_the_diagram_and_the_meaning_of_each_name() -> None:
    assert DOOR.markdown().splitlines() == [
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> closed",
        "    closed --> open: Pushed [gently]",
        "    closed --> gone: Pushed [hard]",
        "    closed --> closed: Locked",
        "    open --> closed: Locked",
        "    gone --> [*]",
        "```",
        "",
        "| state | meaning |",
        "|---|---|",
        "| `closed` | It is closed. |",
        "| `open` | It is open. |",
        "| `gone` | There is none. |",
        "",
        "| event | meaning |",
        "|---|---|",
        "| `Pushed` | Somebody has pushed the door. |",
        "| `Locked` | The door is locked. |",
        "",
        "| guard | meaning |",
        "|---|---|",
        "| [gently] | It holds. |",
        "| [hard] | It breaks. |",
    ]
