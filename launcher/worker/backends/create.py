"""Which backend a worker gets. Only the one that is asked for is imported: torch takes seconds."""

from __future__ import annotations

from launcher.core.protocol.messages import Setup
from launcher.worker.backends import Backend


def create(setup: Setup, threads: int) -> Backend:
    """The backend that ``setup`` asks for, with nothing loaded yet; its libraries are imported and set up here."""
    if setup.backend == "fake":
        from launcher.worker.backends.fake import FakeBackend

        return FakeBackend(setup, threads)
    from launcher.worker.backends.eager import EagerBackend, configure_process

    configure_process(threads)
    if setup.backend == "compile":
        from launcher.worker.backends.compiled import CompiledBackend

        return CompiledBackend(setup)
    return EagerBackend(setup)
