"""The list of running launchers, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from launcher.core.machine.cpuset import format_cpu_list
from launcher.core.planning.claims import Claim
from launcher.printable import printable

HEADINGS = ("NAME", "PID", "USER", "ADDRESS", "MODEL", "CPUS", "SINCE")


def claims_text(claims: Sequence[Claim]) -> str:
    """A table with one line for each launcher; only the headings if there is none."""
    rows = [HEADINGS, *(_row(claim) for claim in claims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _row(claim: Claim) -> tuple[str, ...]:
    since = _since(claim).strftime("%Y-%m-%d %H:%M:%SZ")
    texts = (claim.user, claim.address or "-", claim.model or "-", format_cpu_list(claim.cpus), since)
    return tuple(map(printable, (claim.name, str(claim.pid), *texts)))


def claims_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """One object for each launcher; ``cpus`` in the kernel's list format, ``since`` in ISO 8601."""
    return [
        {
            "name": claim.name,
            "pid": claim.pid,
            "user": claim.user,
            "kind": claim.kind,
            "address": claim.address,
            "model": claim.model,
            "cpus": format_cpu_list(claim.cpus),
            "since": _since(claim).isoformat(timespec="seconds"),
        }
        for claim in claims
    ]


def _since(claim: Claim) -> datetime:
    return datetime.fromtimestamp(claim.since, timezone.utc)
