"""The Python API: instances bound to their cores, started and used by a Python program. See docs/python.md.

``Engine`` is for programs without an event loop and for notebooks, ``AsyncEngine`` for those with one. Both are thin:
the engine itself, and the order of many texts, are in ``launcher.engine``. What a process has one of (signal handlers,
affinity, the policy of event loops, the root logger) must not be touched here.
"""

from launcher.api.aio import AsyncEngine
from launcher.api.results import Entity
from launcher.api.sync import Engine
from launcher.front.label_scores import LabelScore

__all__ = ["AsyncEngine", "Engine", "Entity", "LabelScore"]
