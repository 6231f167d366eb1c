"""The Python API: a Python program starts and uses instances bound to their cores. See docs/python.md.

``Engine`` is for programs without an event loop and for notebooks, ``AsyncEngine`` for programs with one. Both are
thin: the engine and the streaming of texts are in ``launcher.engine``. Signal handlers, affinity, event loop policies
and the root logger belong to the program and must not be changed.
"""

from launcher.api.async_engine import AsyncEngine
from launcher.api.pairs import RankedDocument
from launcher.api.results import Entity
from launcher.api.sync_engine import Engine
from launcher.front.tasks.answers import Answer
from launcher.front.tasks.filled_masks import FilledMask
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tasks.sparse_vectors import SparseVector

__all__ = ["Answer", "AsyncEngine", "Engine", "Entity", "FilledMask", "LabelScore", "RankedDocument", "SparseVector"]
