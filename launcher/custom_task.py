"""Custom tasks: the protocol of their classes, and importing a class that ``--task module:Class`` names.

Separate from all layers because the front and every worker import the same class. What runs it is in ``front`` and
``worker``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, ClassVar, Protocol

from launcher.errors import UsageError


class CustomTask(Protocol):
    """What a class needs to be served with ``--task module:Class``.

    It is created without arguments once in the front, which only calls ``size``, and once in each worker, which calls
    ``load`` and then ``sample`` and ``run``. Items and results are JSON values. A class may also define the name of its
    task's model with ``name``, and the size of its weights in memory with ``weight_bytes``, both class attributes.
    """

    max_size: ClassVar[int]
    """The size of the largest item. Sizes are in any unit that the time to run an item grows with, such as tokens or
    patches of an image. The sum of the sizes in a batch is limited by ``--batch-tokens``."""

    def size(self, item: Any) -> int:
        """The size of an item, from 1 to ``max_size``. Raises ``ValueError`` for an item that is not valid: its message
        goes to the client. Must be fast, and must not need the model: it is called in the front."""
        ...

    def load(self, model: str, dtype: str) -> None:
        """Load the model. ``model`` is the value of ``--model``, ``dtype`` is ``fp32``, ``bf16`` or ``int8``; a class
        that does not support it raises ``ValueError``. torch is set to the threads of the instance already."""
        ...

    def sample(self, size: int) -> Any:
        """A valid item of this size, or the nearest size below or above that items can have; to warm up and to measure
        with."""
        ...

    def run(self, items: list[Any]) -> list[Any]:
        """The result of each item, in order; the result of an item must not depend on the others."""
        ...


METHODS = ("size", "load", "sample", "run")


def load_custom_task(place: str) -> CustomTask:
    """An object of the class at ``place``, ``module:Class``; modules are also searched for in the current folder.

    Raises ``UsageError`` if it cannot be imported or created, or lacks a part of ``CustomTask``.
    """
    module_name, _, class_name = place.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--task {place}: there is no module {error.name!r}; it must be installed, or be in the current folder, "
            f"{folder}"
        ) from error
    except Exception as error:
        raise UsageError(f"--task {place}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise UsageError(f"--task {place}: {module_name} has no class {class_name!r}")
    missing = [name for name in METHODS if not callable(getattr(found, name, None))]
    largest = getattr(found, "max_size", None)
    if missing:
        raise UsageError(
            f"--task {place}: the class lacks {', '.join(missing)}; see CustomTask in docs/custom-tasks.md"
        )
    if not isinstance(largest, int) or isinstance(largest, bool) or largest < 1:
        raise UsageError(f"--task {place}: the class attribute max_size is {largest!r}; it must be a positive integer")
    try:
        task: CustomTask = found()
    except Exception as error:
        raise UsageError(f"--task {place}: creating {class_name}() failed: {type(error).__name__}: {error}") from error
    return task


def custom_task_file(place: str) -> Path:
    """The file of the module of ``place``, which has been imported."""
    return Path(getattr(sys.modules.get(place.partition(":")[0]), "__file__", None) or "")
