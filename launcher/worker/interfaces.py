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

from launcher.core.protocol.load_proof import LoadProof
from launcher.core.protocol.messages import LoadStage

ReportProgress = Callable[[LoadStage, float, str], None]
"""Takes a stage of the start, the fraction of it that is done (0 to 1) and a short description."""

TokenIds = NDArray[np.int32]
TypeIds = NDArray[np.uint8]
Results = NDArray[np.float32]


class ModelError(Exception):
    """The model cannot be served, and a retry would not help. The message is one sentence."""


REASON_CHARACTERS = 400


def one_line(error: Exception) -> str:
    """The type and the message of an error on one line, for messages."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:REASON_CHARACTERS] if text else name


class PackingUnsupportedError(Exception):
    """The model or the backend cannot process packed sequences. The message is a clause that gives the reason."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sequence of tokens. ``type_ids`` has the type of each token; None means that all are 0.
    ``prompt_length`` is the number of leading tokens that pooling ignores; ``route`` is that of ``messages.Run``.
    """

    ids: TokenIds
    type_ids: TypeIds | None = None
    prompt_length: int = 0
    route: int = 0

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """The items of a batch, longest first: their lengths in tokens, and their token ids, concatenated.

    ``type_ids`` is parallel to ``ids``; None means that all token types are 0. ``prompt_lengths`` is parallel to
    ``lengths``; empty means that no item has a prompt that pooling ignores. For a custom task there are no
    ids: ``payloads`` has the JSON of each item, and ``lengths`` are sizes. ``routes`` are those of ``messages.Run``.
    """

    ids: TokenIds
    lengths: Sequence[int]
    type_ids: TypeIds | None = None
    prompt_lengths: Sequence[int] = ()
    payloads: Sequence[bytes] = ()
    routes: Sequence[int] = ()

    @classmethod
    def of(cls, items: Sequence[Item]) -> ItemBatch:
        """The batch of these items, longest first."""
        type_ids = None
        if any(item.type_ids is not None for item in items):
            type_ids = np.concatenate(
                [np.zeros(len(item), np.uint8) if item.type_ids is None else item.type_ids for item in items]
            )
        prompts, routes = tuple(item.prompt_length for item in items), tuple(item.route for item in items)
        return cls(
            np.concatenate([item.ids for item in items]),
            tuple(map(len, items)),
            type_ids,
            prompts if any(prompts) else (),
            routes=routes if any(routes) else (),
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The facts known once the model is in memory. ``accuracy``, ``notes``, ``packed`` and ``proof`` are
    those of ``messages.Ready``.
    """

    torch_version: str
    threads: int
    accuracy: float | None = None
    notes: tuple[str, ...] = ()
    packed: bool = False
    proof: LoadProof | None = None


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Results of a batch: rows × width, in the order of the items. ``computed_tokens`` includes padding.

    ``rows`` is the number of rows of each item if ``ModelInfo.rows`` is ``varying`` or ``bytes``, and empty otherwise.
    """

    values: NDArray[Any]
    computed_tokens: int
    rows: Sequence[int] = ()


class BatchRunner(Protocol):
    """Computes the results of batches. The checks in ``result_checks`` need no more than this of a backend."""

    def run(self, batch: ItemBatch) -> BatchOutput:
        """The results of a batch."""
        ...


class Backend(BatchRunner, Protocol):
    """One loaded model. Called from one thread, one batch at a time. Knows neither the channel nor its messages."""

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the model and check its results. Raises ``ModelError``, or whatever the libraries below raise."""
        ...

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """A batch of items of these lengths, or the nearest ones that items can have, longest first, to warm up and
        measure with."""
        ...


class Layout(BatchRunner, Protocol):
    """One way to arrange the items of a batch as tensors for a PyTorch model."""

    def wrap_module(self, wrapper: Callable[[Any], Any] | None) -> None:
        """Call the module that does the work through ``wrapper(module)``; None removes the wrapper."""
        ...
