"""How long the workers of this model took to load it, in this run and in earlier ones."""

from __future__ import annotations

import logging
from pathlib import Path

from launcher.core.lifecycle.start_limit import MAX_RUNS, inspect_after
from launcher.core.protocol.messages import Ready
from launcher.errors import UsageError
from launcher.host.files import cost_tables
from launcher.host.files.load_times import load_times_path, read_load_times, write_load_times
from launcher.prepare.cost_basis import CostKeyBase

log = logging.getLogger("launcher.engine")


class LoadTimes:
    """The load times of one engine. Read and written when the first worker is started and ready."""

    def __init__(self, subject: CostKeyBase, folder: Path | None = None) -> None:
        self._subject = subject
        self._folder = folder or cost_tables.cost_folder()
        self._earlier: tuple[float, ...] | None = None
        self._longest = 0.0

    def inspect_after(self) -> float | None:
        """Seconds after its start when a worker that is not ready is to be inspected; None: nothing is known yet."""
        return inspect_after((*self._read(), self._longest) if self._longest else self._read())

    def save(self, ready: Ready) -> None:
        """Keep the time of a worker, if it is the longest of this run."""
        seconds = ready.load_seconds + ready.warmup_seconds
        if seconds <= self._longest:
            return
        self._longest = seconds
        try:
            kept = (*self._read(), round(seconds, 3))[-MAX_RUNS:]
            write_load_times(self._path(), kept)
        except UsageError as error:
            log.debug("%s", error, extra={"event": "load-times"})

    def _read(self) -> tuple[float, ...]:
        if self._earlier is None:
            try:
                self._earlier = read_load_times(self._path())
            except UsageError as error:
                log.warning("%s; the time to load the model is learned again", error, extra={"event": "load-times"})
                self._earlier = ()
        return self._earlier

    def _path(self) -> Path:
        return load_times_path(self._folder, self._subject.key_of(1, 1, ()))
