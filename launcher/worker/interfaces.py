"""The protocols between the parts of a worker, and the values that cross them.

Separate so that the loop, the warm-up and the checks of results work with any backend. Nothing that imports torch
belongs here: the fake backend must start without it. The protocol of a task needs tensors and is in ``tasks.create``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.core.protocol.messages import LoadStage

ReportProgress = Callable[[LoadStage, float, str], None]
"""Takes a stage of the start, the fraction of it that is done (0 to 1) and a short description."""

TokenIds = NDArray[np.int32]
Results = NDArray[np.float32]


class ModelError(Exception):
    """The model cannot be served, and a retry would not help. The message is one sentence."""


class PackingUnsupportedError(Exception):
    """The model or the backend cannot process packed sequences. The message is a clause that gives the reason."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The facts known once the model is in memory. ``accuracy``, ``notes`` and ``packed`` are those of
    ``messages.Ready``.
    """

    torch_version: str
    threads: int
    accuracy: float | None = None
    notes: tuple[str, ...] = ()
    packed: bool = False


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Results of a batch: float32, rows × width, in the order of the items. ``computed_tokens`` includes padding.

    An item has one row, or one row per token if ``ModelInfo.row_per_token`` is set.
    """

    values: Results
    computed_tokens: int


class BatchRunner(Protocol):
    """Computes the results of batches. The checks in ``result_checks`` need no more than this of a backend."""

    def run(self, ids: TokenIds, lengths: Sequence[int]) -> BatchOutput:
        """Results of items of ``lengths`` tokens, longest first; ``ids`` holds their token ids, concatenated."""
        ...


class Backend(BatchRunner, Protocol):
    """One loaded model. Called from one thread, one batch at a time. Knows neither the channel nor its messages."""

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the model and check its results. Raises ``ModelError``, or whatever the libraries below raise."""
        ...


class Layout(BatchRunner, Protocol):
    """One way to arrange the items of a batch as tensors for a PyTorch model."""

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """Call the module that does the work through ``wrapper(module)``; None removes the wrapper."""
        ...
