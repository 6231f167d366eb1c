"""Decides when a running server warns about other programs on its planned cpus, and how often.

``launch doctor`` answers the same question once (``interference_checks``, whose thresholds are used here). A server
asks it all the time, so it first compares sums, and looks at programs only when these do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.core.diagnosis.facts import Program
from launcher.core.diagnosis.interference_checks import BUSY, MOST_NAMED, RAN
from launcher.core.machine.cpuset import format_cpu_list
from launcher.printable import printable

# Interrupts and short programs of the system, in cpus for each planned cpu.
USUAL = 0.02
# Between two warnings about the same program: this long at first, then twice as long each time.
FIRST_SECONDS, LONGEST_SECONDS = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time in seconds so far: of everything on the planned cpus, and of the server's own processes; ``at`` is the
    time of reading."""

    busy: float
    own: float
    at: float


def foreign_cpus(before: CpuTime, now: CpuTime) -> float:
    """How many cpus, on average, others used of the planned ones between two readings."""
    elapsed = now.at - before.at
    return max(0.0, (now.busy - before.busy) - (now.own - before.own)) / elapsed if elapsed > 0 else 0.0


def is_noticeable(foreign: float, planned: int) -> bool:
    """Whether others use so much of ``planned`` cpus that it is worth looking for them."""
    return foreign >= BUSY + USUAL * planned


@dataclass(slots=True)
class _Said:
    until: float
    pause: float


class InterferenceWarnings:
    """The warnings about programs, each at most once a minute for a process, and less often if it continues."""

    def __init__(self) -> None:
        self._said: dict[int, _Said] = {}

    def about(
        self, programs: Sequence[Program], planned: Sequence[int], at: float
    ) -> Iterator[tuple[Program | None, str]]:
        """The programs to warn about now, each with a sentence; a program of None is one that cannot be seen."""
        wanted = set(planned)
        # One that is pinned there is meant first: others may run elsewhere.
        pinned = {one.pid for one in programs if wanted.issuperset(one.cpus)}
        found = [
            one for one in programs if one.share >= (RAN if one.pid in pinned else BUSY) and wanted & set(one.cpus)
        ]
        for one in sorted(found, key=lambda one: (one.pid not in pinned, -one.share, one.pid))[:MOST_NAMED]:
            if self._due(one.pid, at):
                shared = format_cpu_list(wanted & set(one.cpus))
                yield (
                    one,
                    (
                        f"another program uses {one.share:.0%} of a cpu and may run on the planned cpus {shared}: pid "
                        f"{one.pid}, {printable(one.name)}, affinity {format_cpu_list(one.cpus)}"
                    ),
                )
        if not found and self._due(0, at):
            yield (
                None,
                (
                    f"the planned cpus {format_cpu_list(wanted)} are used by something that is not visible here: a "
                    "program in another container, or the kernel"
                ),
            )

    def _due(self, pid: int, at: float) -> bool:
        said = self._said.get(pid)
        if said is not None and at < said.until:
            return False
        # One that was quiet for long counts as new, also because pids are used again.
        longer = said is not None and at < said.until + 2 * said.pause
        pause = min(2 * said.pause, LONGEST_SECONDS) if said is not None and longer else FIRST_SECONDS
        self._said[pid] = _Said(at + pause, pause)
        self._said = {pid: one for pid, one in self._said.items() if at < one.until + LONGEST_SECONDS}
        return True
