"""What a backend is. Backends compute; they know neither channel nor messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Stage = Literal["import", "load", "check", "warmup"]
Report = Callable[[Stage, float, str], None]
"""Takes a stage of the start, how much of it is done (0…1) and a few words for people."""

Ids = NDArray[np.int32]
Values = NDArray[np.float32]


class ModelRefused(Exception):
    """The model cannot be served, and trying again would not help. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known once the model is in memory. ``accuracy``, ``notes`` and ``packed`` are those of
    ``messages.Ready``."""

    torch_version: str
    threads: int
    accuracy: float | None = None
    notes: tuple[str, ...] = ()
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """Results of a batch: float32, rows × width, in the order of the items. ``computed_tokens`` counts padding.

    An item has one row, or one for each of its tokens where the card says ``row_per_token``.
    """

    values: Values
    computed_tokens: int


class Backend(Protocol):
    """One loaded model. Called from one thread, one batch at a time."""

    def load(self, report: Report) -> Loaded:
        """Load the model and check it. Raises ``ModelRefused``, or whatever the libraries below raise."""
        ...

    def run(self, ids: Ids, lengths: Sequence[int]) -> Output:
        """Results of items of ``lengths`` tokens, longest first, whose ``ids`` follow each other."""
        ...
