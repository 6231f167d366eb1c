"""One command turns a CPU server into an inference server for transformer models.

In Python, ``from launcher import Engine`` starts the same instances in a program of your own (docs/python.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.api import Answer as Answer
    from launcher.api import AsyncEngine as AsyncEngine
    from launcher.api import Engine as Engine
    from launcher.api import Entity as Entity
    from launcher.api import FilledMask as FilledMask
    from launcher.api import LabelScore as LabelScore
    from launcher.api import RankedDocument as RankedDocument
    from launcher.api import SparseVector as SparseVector

__all__ = ["Answer", "AsyncEngine", "Engine", "Entity", "FilledMask", "LabelScore", "RankedDocument", "SparseVector"]


def __getattr__(name: str) -> Any:
    """The names of ``launcher.api``, imported when they are used: the command line needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from launcher import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """What can be imported from here."""
    return sorted([*globals(), *__all__])
