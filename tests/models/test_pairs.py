"""The token types of a pair matter, and zero-shot classification gives the results of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launcher.front.tasks.zero_shot import premise_pairs, zero_shot_labels
from launcher.worker.interfaces import ItemBatch
from tests.models.cases import CASES, ModelCase, RefusedCase
from tests.models.compare import Served
from tests.models.texts import PAIRS, TEXTS

FolderOf = Callable[[ModelCase | RefusedCase], Path]
BY_NAME = {case.name: case for case in CASES}
LABELS = ["weather", "computers", "a long name of a label"]


@pytest.mark.parametrize("layout", ["auto", "sorted"])
def test_a_pair_with_other_token_types_has_another_score(folder_of: FolderOf, layout: str) -> None:
    case = BY_NAME["bert-rerank"]
    with Served(folder_of(case), case.options, layout=layout) as served:
        items = sorted(served.items(PAIRS), key=len, reverse=True)
        typed = served._backend.run(ItemBatch.of(items)).values
        zeros = served._backend.run(ItemBatch.of([replace(item, type_ids=None) for item in items])).values
        mixed = [item if index % 2 else replace(item, type_ids=None) for index, item in enumerate(items)]
        both = served._backend.run(ItemBatch.of(mixed)).values
    assert all(item.type_ids is not None and 0 < item.type_ids.sum() < len(item) for item in items)
    assert np.abs(typed - zeros).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(both[1::2], typed[1::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both[::2], zeros[::2], rtol=1e-4, atol=1e-5)


def test_roberta_gets_no_token_types(folder_of: FolderOf) -> None:
    case = BY_NAME["roberta-rerank"]
    with Served(folder_of(case), case.options) as served:
        assert all(item.type_ids is None for item in served.items(PAIRS))


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_have_the_scores_of_the_zero_shot_pipeline(folder_of: FolderOf, multi_label: bool) -> None:
    from transformers import pipeline

    case = BY_NAME["bert-zero-shot"]
    folder = folder_of(case)
    expected = pipeline("zero-shot-classification", model=str(folder), device="cpu")(
        list(TEXTS), LABELS, multi_label=multi_label
    )
    with Served(folder, case.options) as served:
        rows = served.results(premise_pairs(TEXTS, LABELS, "This example is {}."), batch_items=16)
        logits = np.concatenate(rows).reshape(len(TEXTS), len(LABELS), -1)
        entailment = served.model_info.entailment
        found = [zero_shot_labels(one, LABELS, entailment, multi_label=multi_label) for one in logits]
    for labels, wanted in zip(found, expected, strict=True):
        assert [entry.label for entry in labels] == wanted["labels"]
        assert [entry.score for entry in labels] == pytest.approx(wanted["scores"], rel=1e-5)
