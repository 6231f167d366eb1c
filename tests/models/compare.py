"""Runs a model of the table as ``launch serve`` does, in this process, and compares it with its reference.

The folder is resolved as serve does it, texts are tokenized by the front, and batches are computed by the eager backend
with the setup that workers get, without a warm-up. Only one ``Served`` may be in use at a time: the packed attention is
registered once per process, by the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import torch

from launcher.core.machine.catalogue import CATALOGUE, machine_of
from launcher.front.item_details import ItemDetails
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions, ServeOptions, choices
from launcher.options.choices import RunDtype
from launcher.prepare.model import setup_of
from launcher.worker.backends.eager import EagerBackend
from launcher.worker.backends.static import StaticBackend
from launcher.worker.interfaces import Item, ItemBatch
from launcher.worker.numerics import comparable
from tests.models.references import Results

MACHINE = machine_of(CATALOGUE[0])
FEW_VALUES = 4  # in a row
MIXED_BATCH = 4  # items, in the order of the texts, so of very different lengths


class Served:
    """One model, loaded. Raises ``UsageError`` or ``ModelError`` if it is refused.

    ``layout``: ``auto`` packs items if the model supports it, ``sorted`` pads them. ``changes`` replaces what was read
    from the model's files, to show that a wrong value changes results.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        *,
        dtype: RunDtype = "fp32",
        layout: choices.Layout = "auto",
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        model = ModelOptions(model=str(folder), dtype=dtype, layout=layout, **options)
        self.model_info = msgspec.structs.replace(resolve(model), **changes)
        setup = setup_of(ServeOptions(model=model), MACHINE, self.model_info)
        backend = StaticBackend if self.model_info.static else EagerBackend
        self._backend = backend(msgspec.structs.replace(setup, warmup=(), mixed=()))
        with torch.no_grad():
            self.loaded = self._backend.load(lambda stage, done, detail: None)
        self._tokenizer = FrontTokenizer(self.model_info, text_characters=100_000)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokenizer.close()

    def items(self, inputs: Sequence[Any]) -> list[Item]:
        """The items of the inputs, as the front sends them."""
        if all(isinstance(one, str) for one in inputs):
            tokenized = asyncio.run(self._tokenizer.texts(inputs, truncate=True))
        else:
            truncation = "only_first" if self.model_info.task == "zero-shot" else "longest_first"
            tokenized = asyncio.run(self._tokenizer.pairs(inputs, truncate=True, truncation=truncation))
        details = tokenized.details or ItemDetails()
        types = details.type_ids or [None] * len(tokenized.items)
        prompts = details.prompt_lengths or [0] * len(tokenized.items)
        return [Item(*parts) for parts in zip(tokenized.items, types, prompts, strict=True)]

    def results(self, inputs: Sequence[Any], batch_items: int) -> Results:
        """The rows of each input, computed in batches of this many items; 1 computes each alone."""
        return self.results_of_items(self.items(inputs), batch_items)

    def results_of_items(self, items: Sequence[Item], batch_items: int) -> Results:
        """The rows of each item, as ``results``."""
        results: dict[int, np.ndarray] = {}
        for start in range(0, len(items), batch_items):
            batch = range(start, min(start + batch_items, len(items)))
            order = sorted(batch, key=lambda index: -len(items[index]))
            output = self._backend.run(ItemBatch.of([items[index] for index in order]))
            if self.model_info.rows == "varying":
                results.update(zip(order, np.split(comparable(output, self.model_info), len(order)), strict=True))
                continue
            rows = [len(items[index]) if self.model_info.rows == "token" else 1 for index in order]
            results.update(zip(order, np.split(output.values, np.cumsum(rows)[:-1]), strict=True))
        return [results[index] for index in range(len(items))]

    def results_by_batching(self, inputs: Sequence[Any]) -> dict[str, Results]:
        """The results of the inputs alone, in batches of mixed lengths, and all in one batch."""
        sizes = {"alone": 1, "in mixed batches": MIXED_BATCH, "in one batch": len(inputs)}
        return {name: self.results(inputs, size) for name, size in sizes.items()}


def relative_error(expected: Results, actual: Results) -> float:
    """The largest distance between two rows, relative to the norm of the expected one.

    A row with a single value is compared relative to the largest value of all, since values near 0 are legitimate.
    """
    if [rows.shape for rows in expected] != [rows.shape for rows in actual]:
        return float("inf")
    one, other = np.concatenate(expected), np.concatenate(actual)
    norms = np.linalg.norm(one, axis=1)
    scale = np.full_like(norms, norms.max()) if one.shape[1] == 1 else norms
    return float(np.max(np.linalg.norm(one - other, axis=1) / np.maximum(scale, 1e-12)))


def lowest_cosine(expected: Results, actual: Results) -> float:
    """The lowest cosine between the two results of an input, all its rows as one vector.

    A logit has no angle, and few logits have one that rounding alone can turn. So those of all inputs are one vector.
    For rerankers, whose rows have the logit and its score, it has the logits.
    """
    if expected[0].shape[1] <= FEW_VALUES:
        columns = slice(0, 1) if expected[0].shape[1] == 2 else slice(None)
        expected, actual = ([np.concatenate(results)[:, columns]] for results in (expected, actual))

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sum(one * other) / np.sqrt(np.sum(one * one) * np.sum(other * other)))

    return min(cosine(one, other) for one, other in zip(expected, actual, strict=True))
