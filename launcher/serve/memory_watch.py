"""Samples the memory use of the control group once a second, and closes admission before the OOM killer comes.

The sample covers the front, the workers and whatever else is in the group or in one of its ancestors, whichever is
closest to its limit; page cache that the kernel can reclaim does not count. ``core.scheduling.memory_gate`` decides.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import anyio

from launcher.core.scheduling.memory_gate import MIB, MemoryGate
from launcher.front.metrics import FrontMetrics
from launcher.host.machine.cgroup import MemoryUse, read_memory_use
from launcher.host.machine.file_tree import Tree

log = logging.getLogger("launcher.serve")

SAMPLE_SECONDS = 1.0


class MemoryWatch:
    """Samples for ``gate``, and exports what it sees as metrics."""

    def __init__(self, gate: MemoryGate, metrics: FrontMetrics) -> None:
        self._gate = gate
        self._use: MemoryUse | None = None
        metrics.watch(
            "launcher_memory_used_bytes",
            "Memory used by the control group that is closest to its limit, without reclaimable page cache.",
            lambda: self._use.used if self._use else math.nan,
        )
        metrics.watch(
            "launcher_memory_limit_bytes",
            "Memory limit of this control group.",
            lambda: self._use.limit if self._use else math.inf,
        )
        metrics.watch(
            "launcher_memory_admission_open",
            "1 if requests are admitted, 0 if they are refused because memory is short.",
            lambda: gate.reason is None,
        )

    def became_ready(self) -> None:
        """The server is ready."""
        self._gate.became_ready(*self._limit_and_use())

    def instances_changed(self) -> None:
        """The server has another number of instances."""
        self._gate.instances_changed(*self._limit_and_use())

    def _limit_and_use(self) -> tuple[int | None, int]:
        use = self._sample()
        return (None, 0) if use is None else (use.limit, use.used)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            use = self._sample()
            if self._gate.update(use.limit if use else None, use.used if use else 0):
                self._log(use)
            await anyio.sleep(SAMPLE_SECONDS)

    def _sample(self) -> MemoryUse | None:
        # Less than a millisecond. A new tree each time, because the limits of a running container can change.
        self._use = read_memory_use(Tree(Path("/")))
        return self._use

    def _log(self, use: MemoryUse | None) -> None:
        folder = "" if use is None else f" in the control group {use.folder}"
        if self._gate.reason is not None:
            sentence = "New requests are refused until more memory is free%s: %s"
            log.warning(sentence, folder, self._gate.reason, extra={"event": "memory_short"})
        else:
            amount = "without a limit" if use is None else f"{(use.limit - use.used) // MIB} MiB are left"
            log.info("Requests are admitted again%s: %s", folder, amount, extra={"event": "memory_free"})
