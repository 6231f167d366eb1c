"""Watches for other programs on the planned cpus, and warns about them by name in the log.

Separate from the watch of the machine: other programs change nothing about the plan, so that nothing follows but words.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial

import anyio
import anyio.to_thread

from launcher.core.diagnosis.interference_watch import CpuTime, InterferenceWarnings, foreign_cpus, is_noticeable
from launcher.engine.inference_engine import InferenceEngine
from launcher.host.machine.foreign_load import other_programs, read_cpu_time
from launcher.serve.process_setup import FrontBinding

log = logging.getLogger("launcher.serve")

SECONDS = 10.0
# How often to see whether the processes are still the same.
STEP_SECONDS = 2.0


class InterferenceWatch:
    """Compares the CPU time of the planned cpus with that of the server's own processes, over ``SECONDS``."""

    def __init__(self, engine: InferenceEngine, front: FrontBinding) -> None:
        self._engine = engine
        self._front = front
        self._warnings = InterferenceWarnings()
        self._subject: tuple[tuple[int, ...], frozenset[int]] | None = None
        self._before = CpuTime(0.0, 0.0, 0.0)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._look()
            except Exception as error:  # such as a lack of threads: the server must go on
                log.debug("the load of other programs could not be measured: %s", error)
            await anyio.sleep(STEP_SECONDS)

    async def _look(self) -> None:
        instances = self._engine.prepared.plan.instances
        cpus = tuple(sorted({*(cpu for one in instances for cpu in one.cpus), *(self._front.bound or ())}))
        own = frozenset({os.getpid(), *self._engine.worker_pids().values()})
        # With other processes, sums cannot be compared.
        same, self._subject = self._subject == (cpus, own), (cpus, own)
        if same and time.monotonic() < self._before.at + SECONDS:
            return
        # A thread may still be reading when the server ends.
        now = await anyio.to_thread.run_sync(partial(read_cpu_time, cpus, own), abandon_on_cancel=True)
        before, self._before = self._before, now
        if not same:
            return
        foreign = foreign_cpus(before, now)
        self._engine.metrics.foreign_cpu_seconds.add(foreign * (now.at - before.at))
        if is_noticeable(foreign, len(cpus)):
            await self._warn(cpus)

    async def _warn(self, cpus: tuple[int, ...]) -> None:
        online = self._engine.prepared.machine.online
        programs = await anyio.to_thread.run_sync(partial(other_programs, online), abandon_on_cancel=True)
        for program, sentence in self._warnings.about(programs, cpus, time.monotonic()):
            extra = {"event": "interference", "program_pid": None if program is None else program.pid}
            log.warning("%s", sentence, extra=extra)
