"""How the items of a batch are laid out for the model: padded to one width, or packed one behind the other.

Backends choose; tasks reduce what the model gives. Nothing here knows channel or messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from launcher.worker.backends import Ids


class Layout(Protocol):
    """One way to run a model."""

    def run(self, ids: Ids, lengths: Sequence[int]) -> tuple[Tensor, int]:
        """Results of items of ``lengths`` tokens, longest first, whose ``ids`` follow each other, and the number of
        tokens computed for them, filling counted. Results: those of ``backends.Output``."""
        ...

    def wrap(self, wrapper: Callable[[Any], Any] | None) -> None:
        """Have the module that does the work called through what ``wrapper`` makes of it; None: as it is."""
        ...
