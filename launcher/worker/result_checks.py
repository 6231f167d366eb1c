"""Checks of results when a model is loaded: packed, padded, optimized, and in a lower precision.

A reference is computed in fp32, one item at a time, in the plainest way a backend has. Everything that the backend does
to be faster must then give the same results within the bounds below. Works with any ``BatchRunner``, so code for a
single backend does not belong here, and torch must not be imported. How differences are measured is in ``numerics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import (
    BatchRunner,
    Item,
    ItemBatch,
    ModelError,
    PackingUnsupportedError,
    Results,
    one_line,
)
from launcher.worker.numerics import changed_labels, comparable, largest_relative_error, lowest_cosine, rows_of
from launcher.worker.sample_inputs import check_batches

MAX_RELATIVE_ERROR = 1e-4  # with fp32; rounding gives 1e-7 to 1e-5
HIGH_COSINE = 0.999  # with fp32; lower values are reported
MIN_COSINE = 0.9  # with fp32; results below it are considered wrong


@dataclass(frozen=True, slots=True)
class Reference:
    """The expected results of check items, longest first; ``results`` has the rows of all items in order."""

    model_info: ModelInfo
    items: Sequence[Item]
    results: Results

    @classmethod
    def one_by_one(cls, runner: BatchRunner, model_info: ModelInfo, items: Sequence[Item]) -> Reference:
        """The results of each item in a batch of its own. Raises ``ModelError`` if the model fails."""
        try:
            results = np.concatenate([run_items(runner, [item], model_info) for item in items])
        except Exception as error:  # of a setting in config.json that only the computation reads
            raise ModelError(
                f"{model_info.requested}: the model in {model_info.folder} fails on a text, with the settings in its "
                f"config.json: {one_line(error)}"
            ) from error
        if np.isnan(results).any():
            raise ModelError(
                f"{model_info.requested}: the results of texts in fp32 contain NaN; the weights in "
                f"{model_info.folder} must be finite"
            )
        return cls(model_info, items, results)

    @classmethod
    def as_batch(cls, runner: BatchRunner, model_info: ModelInfo, items: Sequence[Item]) -> Reference:
        """The results of all items as one batch."""
        return cls(model_info, items, run_items(runner, items, model_info))

    def compare(self, runner: BatchRunner) -> Iterable[Comparison]:
        """Run the check batches, one at a time, and yield the expected and actual results of each."""
        for indices in check_batches(self.items, self.model_info.max_length):
            items = [self.items[index] for index in indices]
            expected = self.results[rows_of(self.items, indices, self.model_info)]
            yield Comparison(self.model_info, items, expected, run_items(runner, items, self.model_info))

    def compare_all_items(self, runner: BatchRunner) -> Comparison:
        """Run all items as one batch."""
        return Comparison(self.model_info, self.items, self.results, run_items(runner, self.items, self.model_info))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The expected and actual results of one batch."""

    model_info: ModelInfo
    items: Sequence[Item]
    expected: Results
    actual: Results

    def relative_error(self) -> float:
        """See ``largest_relative_error``."""
        return largest_relative_error(self.expected, self.actual)

    def cosine(self) -> float:
        """See ``lowest_cosine``."""
        return lowest_cosine(self.expected, self.actual, self.items, self.model_info)


def run_items(runner: BatchRunner, items: Sequence[Item], model_info: ModelInfo) -> Results:
    """The results of ``items``, longest first, as one batch, in comparable form."""
    return comparable(runner.run(ItemBatch.of(items)), model_info)


Runner = TypeVar("Runner", bound=BatchRunner)


@dataclass(frozen=True, slots=True)
class Selection(Generic[Runner]):
    """The runner to serve with. ``error`` is its largest relative error; ``not_packed`` is None if it packs items,
    and otherwise the reason why it does not. ``variant`` is its index among the packed candidates."""

    runner: Runner
    error: float
    not_packed: str | None
    variant: int | None = None


def select_runner(
    reference: Reference, packed: Iterable[Runner], make_padded: Callable[[], Runner]
) -> Selection[Runner]:
    """The first of the ``packed`` candidates whose results are those of the reference; otherwise a padded runner.

    A candidate may raise anything, because it runs the model in a way that its authors may not have foreseen. Raises
    ``ModelError`` if the results of the padded runner differ too: then the model cannot be served in batches.
    """
    reason = "there is no packed variant"
    try:
        for variant, runner in enumerate(packed):
            # Not the built-in max, which may skip NaN.
            error = float(np.max([comparison.relative_error() for comparison in reference.compare(runner)]))
            if error <= MAX_RELATIVE_ERROR:
                return Selection(runner, error, None, variant)
            reason = f"packed results differ from those of single items by {error:.2g}"
    except PackingUnsupportedError as unsupported:
        reason = str(unsupported)
    except Exception as raised:
        reason = f"the model fails on packed items ({type(raised).__name__})"
    padded = make_padded()
    return Selection(padded, check_padding(reference, padded), reason)


def check_padding(reference: Reference, runner: BatchRunner) -> float:
    """The largest relative error of padded results. Raises ``ModelError`` if it is too large."""
    error = reference.compare_all_items(runner).relative_error()
    if not error <= MAX_RELATIVE_ERROR:
        raise ModelError(
            f"{reference.model_info.requested}: the result of a text depends on the padding in its batch (relative "
            f"error {error:.2g} on the check texts; at most {MAX_RELATIVE_ERROR:g} is allowed), so this model cannot "
            "be served in batches"
        )
    return error


def results_unchanged(reference: Reference, runner: BatchRunner, dtype: str) -> bool:
    """Whether an optimization kept the results of all check batches, up to rounding in ``dtype``."""
    comparisons = reference.compare(runner)
    if dtype == "fp32":
        return all(comparison.relative_error() <= MAX_RELATIVE_ERROR for comparison in comparisons)
    return all(comparison.cosine() >= HIGH_COSINE for comparison in comparisons)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The lowest cosine between results in ``dtype`` and the reference, and what to report about it."""

    cosine: float
    notes: tuple[str, ...]


def check_accuracy(reference: Reference, runner: BatchRunner, dtype: str) -> Accuracy:
    """How close results in a lower precision are to the reference in fp32. Raises ``ModelError`` if they are zero,
    not finite, or too far from it."""
    asked = reference.model_info.requested
    comparison = reference.compare_all_items(runner)
    cosine = comparison.cosine()
    if not np.isfinite(cosine):
        raise ModelError(f"{asked}: results in {dtype} are zero or not finite; use --dtype fp32")
    if cosine < MIN_COSINE:
        raise ModelError(
            f"{asked}: results in {dtype} have a cosine of only {cosine:.3f} with fp32; at least {MIN_COSINE} is "
            "required; use --dtype fp32"
        )
    notes = []
    if cosine < HIGH_COSINE:
        notes.append(f"low accuracy in {dtype}: cosine {cosine:.5f} with fp32; use --dtype fp32 for exact results")
    if reference.model_info.task == "tag" and (changed := changed_labels(comparison.expected, comparison.actual)):
        notes.append(f"{dtype} changes the label of {changed} of {len(comparison.expected)} tokens of the check texts")
    return Accuracy(cosine, tuple(notes))
