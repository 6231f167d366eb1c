"""The table of backends. Only the one that is used is imported: torch alone takes seconds.

To add a backend: write ``<name>.py`` here with a class that implements ``interfaces.Backend``, and add it to
``BACKENDS`` and to the names in ``options.choices.Backend``. ``result_checks`` checks its results at load; a backend
that converts a PyTorch model gets it from ``load_model``.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from launcher.core.protocol.messages import Setup
from launcher.options import choices
from launcher.worker.interfaces import Backend


def _fake(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.fake import FakeBackend

    return FakeBackend(setup, threads)


def _eager(setup: Setup) -> Backend:
    from launcher.worker.backends.eager import EagerBackend

    return EagerBackend(setup)


def _compile(setup: Setup) -> Backend:
    from launcher.worker.backends.compile import CompileBackend

    return CompileBackend(setup)


def _custom(setup: Setup, threads: int) -> Backend:
    from launcher.worker.backends.custom import CustomBackend

    return CustomBackend(setup, threads)


def _static(setup: Setup) -> Backend:
    if setup.model_info.task == "sparse-embed":
        from launcher.worker.backends.sparse_static import SparseStaticBackend

        return SparseStaticBackend(setup)
    from launcher.worker.backends.static import StaticBackend

    return StaticBackend(setup)


BACKENDS: dict[choices.Backend, Callable[[Setup], Backend]] = {"eager": _eager, "compile": _compile}


def create_backend(setup: Setup, threads: int) -> Backend:
    """The backend that ``setup`` names, without a model yet; its libraries are imported and configured.

    Static embeddings and custom classes are computed in one way only, whether ``eager`` or ``compile`` is
    named.
    """
    if setup.model_info.task == "custom":
        return _custom(setup, threads)
    if setup.backend == "fake":
        return _fake(setup, threads)
    if BACKENDS[setup.backend] in (_eager, _compile) or setup.model_info.static:
        from launcher.worker.backends.eager import configure_torch

        configure_torch(threads)
    return with_routes(setup)


def with_routes(setup: Setup) -> Backend:
    """The backend of a model that torch computes, or one that computes both routes of a model with routes."""
    routes = setup.model_info.routes
    if routes is None:
        return _static(setup) if setup.model_info.static else BACKENDS[setup.backend](setup)
    from launcher.worker.backends.routed import RoutedBackend

    first = structs.replace(setup, model_info=structs.replace(setup.model_info, routes=None))
    # Static embeddings beside an encoder take no time worth a lower precision.
    dtype = "fp32" if routes.model_info.static and not first.model_info.static else setup.dtype
    second = structs.replace(setup, model_info=routes.model_info, dtype=dtype)
    return RoutedBackend(setup, with_routes(first), with_routes(second))
