"""Computes the two routes of a model that has modules of their own for queries and documents.

Each route has a backend. Separate from the other backends so that models without routes do not pay for them. How a
route is computed does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from launcher.core.protocol.messages import Setup
from launcher.worker.interfaces import Backend, BatchOutput, ItemBatch, LoadedModel, ReportProgress, Results


class RoutedBackend:
    """See the head of this module. ``first`` and ``second`` compute the routes of those names (see ``Routes``)."""

    def __init__(self, setup: Setup, first: Backend, second: Backend) -> None:
        self._by_item = setup.model_info.rows == "item"
        self._backends = (first, second)

    def load(self, report: ReportProgress) -> LoadedModel:
        """See ``Backend.load``. The facts are those of both routes."""
        first, second = (backend.load(report) for backend in self._backends)
        cosines = [loaded.accuracy for loaded in (first, second) if loaded.accuracy is not None]
        return replace(
            first,
            accuracy=min(cosines, default=None),
            notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
        )

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``; the batches are those of the first route, which takes the longer texts."""
        return self._backends[0].sample_batch(lengths)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        if not any(batch.routes):
            return self._backends[0].run(batch)
        ends = np.cumsum(batch.lengths)
        tokens = [slice(end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]
        found: dict[int, Results] = {}
        computed = 0
        for route, backend in enumerate(self._backends):
            items = [index for index, own in enumerate(batch.routes) if own == route]
            if not items:
                continue
            output = backend.run(_part(batch, items, tokens))
            rows = output.rows or (1,) * len(items)
            found.update(zip(items, np.split(output.values, np.cumsum(rows)[:-1]), strict=True))
            computed += output.computed_tokens
        results = [found[index] for index in range(len(batch.lengths))]
        return BatchOutput(np.concatenate(results), computed, () if self._by_item else tuple(map(len, results)))


def _part(batch: ItemBatch, items: Sequence[int], tokens: Sequence[slice]) -> ItemBatch:
    """The batch of some items of ``batch``, whose tokens are in these places."""
    # Items of a route without token types have zeros beside those of the other route.
    type_ids = None if batch.type_ids is None else np.concatenate([batch.type_ids[tokens[index]] for index in items])
    return replace(
        batch,
        ids=np.concatenate([batch.ids[tokens[index]] for index in items]),
        lengths=tuple(batch.lengths[index] for index in items),
        type_ids=type_ids if type_ids is not None and type_ids.any() else None,
        prompt_lengths=tuple(batch.prompt_lengths[index] for index in items) if batch.prompt_lengths else (),
        routes=(),
    )
