"""On what terms a request is to be served: its priority and its deadline, from headers.

Headers rather than fields of the body, so that they are the same for every API and clients of other servers can send
them. What the terms lead to is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.core.scheduling.events import PRIORITIES, Priority
from launcher.errors import RequestError

PRIORITY_HEADER = "x-launcher-priority"
DEADLINE_HEADER = "x-launcher-deadline-ms"
MOST_DIGITS = 9  # eleven days
_PRIORITY, _DEADLINE = PRIORITY_HEADER.encode(), DEADLINE_HEADER.encode()
_BY_NAME: dict[bytes, Priority] = {priority.encode(): priority for priority in PRIORITIES}


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """``deadline`` is in seconds from the arrival of the request's head."""

    priority: Priority = "interactive"
    deadline: float | None = None


USUAL = RequestHeaders()


def parse_request_headers(headers: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """The terms that the headers of a request ask for. Raises ``RequestError``."""
    asked = [entry for entry in headers if entry[0] == _PRIORITY or entry[0] == _DEADLINE]
    if not asked:
        return USUAL
    values = dict(asked)
    if len(values) < len(asked):
        raise RequestError(
            f"{PRIORITY_HEADER} or {DEADLINE_HEADER} is given twice; give each at most once", code="invalid_header"
        )
    priority, deadline = values.get(_PRIORITY), values.get(_DEADLINE)
    return RequestHeaders(
        "interactive" if priority is None else _priority(priority), None if deadline is None else _seconds(deadline)
    )


def _priority(value: bytes) -> Priority:
    priority = _BY_NAME.get(value.strip().lower())
    if priority is None:
        raise RequestError(
            f"{PRIORITY_HEADER} is {_shown(value)}; it may be {' or '.join(PRIORITIES)}",
            code="invalid_priority",
            param=PRIORITY_HEADER,
        )
    return priority


def _seconds(value: bytes) -> float:
    digits = value.strip()
    if not digits.isdigit() or len(digits) > MOST_DIGITS or int(digits) == 0:
        raise RequestError(
            f"{DEADLINE_HEADER} is {_shown(value)}; it takes a positive whole number of milliseconds, such as 250, "
            f"of at most {MOST_DIGITS} digits",
            code="invalid_deadline",
            param=DEADLINE_HEADER,
        )
    return int(digits) / 1000


def _shown(value: bytes) -> str:
    return repr(value[:50].decode("latin-1"))
