"""The backend for a custom class (``--task module:Class``; see ``launcher.custom_task``).

Separate from the other backends because it gets items as JSON and knows neither tokens nor layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from launcher.core.protocol.messages import Setup
from launcher.custom_task import load_custom_task
from launcher.errors import UsageError
from launcher.worker.interfaces import BatchOutput, ItemBatch, LoadedModel, ModelError, ReportProgress

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_NO_IDS = np.empty(0, dtype=np.int32)


class CustomBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup, threads: int) -> None:
        self._setup, self._threads = setup, threads
        self._place = setup.model_info.custom_class
        try:
            self._task = load_custom_task(self._place)
        except UsageError as error:
            raise ModelError(str(error)) from error

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the model, and run two items alone and together. Raises ``ModelError``, or what the class raises."""
        import torch  # after the class, which may set variables that torch reads when it is imported

        torch.set_num_threads(self._threads)
        torch.set_grad_enabled(False)
        report("load", 0.0, self._place)
        self._task.load(self._setup.model_info.requested, self._setup.dtype)
        report("load", 1.0, self._place)
        report("check", 0.0, "running two items")
        largest = self._setup.model_info.max_length
        for sizes in ((largest,), (1,), (largest, 1)):
            self.run(self.sample_batch(sizes))
        report("check", 1.0, "every item has a result")
        return LoadedModel(torch_version=str(torch.__version__), threads=torch.get_num_threads(), packed=True)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``; the items have the sizes that the class can make. Raises ``ModelError`` if one
        has none from 1 to ``max_size``."""
        samples = {size: self._sample(size) for size in set(lengths)}
        items = sorted((samples[size] for size in lengths), key=lambda item: -item[0])
        return ItemBatch(_NO_IDS, [size for size, _ in items], payloads=[payload for _, payload in items])

    def _sample(self, wanted: int) -> tuple[int, bytes]:
        item = self._task.sample(wanted)
        size = self._task.size(item)
        if not 1 <= size <= self._setup.model_info.max_length:
            raise ModelError(f"{self._place}: sample({wanted}) returned an item of size {size}")
        return size, self._to_json(item, f"sample({wanted})")

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``: the JSON of each result, uint8, bytes × 1."""
        items = [_decode(payload) for payload in batch.payloads]
        results = self._task.run(items)
        if not isinstance(results, list) or len(results) != len(items):
            found = f"{len(results)} results" if isinstance(results, list) else type(results).__name__
            raise ModelError(f"{self._place}: run must return a list of {len(items)} results, found {found}")
        encoded = [self._to_json(result, "run") for result in results]
        values = np.frombuffer(b"".join(encoded), dtype=np.uint8)[:, None]
        return BatchOutput(values, sum(batch.lengths), tuple(map(len, encoded)))

    def _to_json(self, value: Any, method: str) -> bytes:
        try:
            return _encode(value)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{self._place}: {method} returned what JSON cannot express: {error}") from error
