"""The table of backends. Only the one that is used is imported: torch alone takes seconds.

To add a backend: write ``<name>.py`` here with a class that implements ``interfaces.Backend``, and add it to
``BACKENDS`` and to the names in ``options.choices.Backend``. ``result_checks`` checks its results at load; a backend
that converts a PyTorch model gets it from ``load_model``.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.core.protocol.messages import Setup
from launcher.options import choices
from launcher.worker.interfaces import Backend


def _fake(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.fake import FakeBackend

    return FakeBackend(setup, threads)


def _eager(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.eager import EagerBackend, configure_torch

    configure_torch(threads)
    return EagerBackend(setup)


def _compile(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.compile import CompileBackend
    from launcher.worker.backends.eager import configure_torch

    configure_torch(threads)
    return CompileBackend(setup)


def _custom(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.custom import CustomBackend

    return CustomBackend(setup, threads)


def _static(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.eager import configure_torch
    from launcher.worker.backends.static import StaticBackend

    configure_torch(threads)
    return StaticBackend(setup)


def _routed(setup: Setup, encoder: Backend) -> Backend:
    from launcher.worker.backends.routed import RoutedBackend

    return RoutedBackend(setup, encoder)


BACKENDS: dict[choices.Backend, Callable[[Setup, int], Backend]] = {"eager": _eager, "compile": _compile, "fake": _fake}


def create_backend(setup: Setup, threads: int) -> Backend:
    """The backend that ``setup`` names, without a model yet; its libraries are imported and configured.

    Static embeddings and custom classes are computed in one way only, whether ``eager`` or ``compile`` is
    named.
    """
    if setup.model_info.task == "custom":
        return _custom(setup, threads)
    if setup.model_info.static and setup.backend != "fake":
        return _static(setup, threads)
    backend = BACKENDS[setup.backend](setup, threads)
    return backend if setup.model_info.routes is None or setup.backend == "fake" else _routed(setup, backend)
