"""The request headers for priority and deadline.

They are headers and not fields of the body, so that they are the same for every API family and can be sent by clients
written for other servers. Their effect is up to the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.core.scheduling.events import PRIORITIES, Priority
from launcher.errors import RequestError
from launcher.front.http.route import HeaderSpec

PRIORITY_HEADER = "x-launcher-priority"
DEADLINE_HEADER = "x-launcher-deadline-ms"
MAX_DIGITS = 9  # eleven days
HEADERS = (
    HeaderSpec(
        PRIORITY_HEADER,
        "Requests with priority bulk use only instances that have no interactive inputs queued.",
        {"type": "string", "enum": list(PRIORITIES), "default": PRIORITIES[0]},
    ),
    HeaderSpec(
        DEADLINE_HEADER,
        "Deadline in milliseconds from the arrival of the request; after it the response is of no use.",
        {"type": "integer", "minimum": 1, "maximum": 10**MAX_DIGITS - 1},
    ),
)
_PRIORITY, _DEADLINE = PRIORITY_HEADER.encode(), DEADLINE_HEADER.encode()
_BY_NAME: dict[bytes, Priority] = {priority.encode(): priority for priority in PRIORITIES}


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """``deadline`` is in seconds from the arrival of the request's header section."""

    priority: Priority = "interactive"
    deadline: float | None = None


DEFAULTS = RequestHeaders()


def parse_request_headers(headers: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """Priority and deadline, from the headers of a request. Raises ``RequestError``."""
    ours = [entry for entry in headers if entry[0] == _PRIORITY or entry[0] == _DEADLINE]
    if not ours:
        return DEFAULTS
    values = dict(ours)
    if len(values) < len(ours):
        raise RequestError(
            f"{PRIORITY_HEADER} or {DEADLINE_HEADER} is sent twice; send each at most once", code="invalid_header"
        )
    priority, deadline = values.get(_PRIORITY), values.get(_DEADLINE)
    return RequestHeaders(
        "interactive" if priority is None else _priority(priority), None if deadline is None else _seconds(deadline)
    )


def _priority(value: bytes) -> Priority:
    priority = _BY_NAME.get(value.strip().lower())
    if priority is None:
        raise RequestError(
            f"{PRIORITY_HEADER} is {_shown(value)}; it must be {' or '.join(PRIORITIES)}",
            code="invalid_priority",
            param=PRIORITY_HEADER,
        )
    return priority


def _seconds(value: bytes) -> float:
    digits = value.strip()
    if not digits.isdigit() or len(digits) > MAX_DIGITS or int(digits) == 0:
        raise RequestError(
            f"{DEADLINE_HEADER} is {_shown(value)}; it must be a positive whole number of milliseconds, such as 250, "
            f"of at most {MAX_DIGITS} digits",
            code="invalid_deadline",
            param=DEADLINE_HEADER,
        )
    return int(digits) / 1000


def _shown(value: bytes) -> str:
    return repr(value[:50].decode("latin-1"))
