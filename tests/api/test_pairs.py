"""Pairs of texts through an engine: the results of ``CrossEncoder`` and of the pipelines of transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import AsyncEngine, Engine, RankedDocument
from launcher.errors import RequestError, UsageError

pytestmark = pytest.mark.slow

QUERY = "Where do trains to the coast leave?"
DOCUMENTS = [
    "Trains to the coast leave from platform four every hour.",
    "no",
    "The harvest was late that year. " * 100,
    "Çà va, Zoë? 🙂 In Köln.",
    "A [SEP] in the middle, and a [MASK].",
    "platform " * 7,
]
LABELS = ["travel", "weather", "cooking"]
OPTIONS: dict[str, Any] = {"instances": 1, "dtype": "fp32", "reserve_cores": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save(folder: Path, labels: dict[int, str]) -> None:
    """A BERT that classifies, with the tokenizer of the demo model and weights that make scores differ."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from launcher.host.model.resolve import demo_folder

    torch.manual_seed(3)
    names = {"id2label": labels, "label2id": {label: id for id, label in labels.items()}}
    config = BertConfig(**SIZES, **names, initializer_range=0.3)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_folder(verify=False)).save_pretrained(folder)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("reranker")
    save(folder / "encoder", {0: "relevance"})
    CrossEncoder(str(folder / "encoder"), device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nli")
    save(folder, {0: "entailment", 1: "neutral", 2: "contradiction"})
    return folder


@pytest.fixture(scope="module")
def classifier(nli: Path) -> Iterator[Engine]:
    with Engine(nli, **OPTIONS) as engine:
        yield engine


def test_documents_are_ranked_as_by_the_cross_encoder(reranker: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(reranker), device="cpu")
    with Engine(reranker, **OPTIONS) as engine:
        found = engine.rerank(QUERY, iter(DOCUMENTS), truncate=True)
        raw = engine.rerank(QUERY, DOCUMENTS, raw_scores=True, return_documents=True, top_k=3, truncate=True)
        with pytest.raises(RequestError, match=r"the pair of 'query' and 'documents\[2\]' has .*; .*truncate=True"):
            engine.rerank(QUERY, DOCUMENTS)
        with pytest.raises(UsageError, match=r"'documents\[1\]' is of type int; it must be a str"):
            engine.rerank(QUERY, ["a", 5])  # type: ignore[list-item]
        with pytest.raises(UsageError, match=r"'rerank', not 'classify'; use rerank\(\)"):
            engine.classify("text")
        assert engine.rerank(QUERY, []) == []
    expected = model.rank(QUERY, DOCUMENTS)
    assert [entry.index for entry in found] == [entry["corpus_id"] for entry in expected]
    assert [entry.score for entry in found] == pytest.approx([entry["score"] for entry in expected], rel=1e-5)
    assert len({round(entry.score, 3) for entry in found}) == len(DOCUMENTS)
    best = model.rank(QUERY, DOCUMENTS, activation_fn=torch.nn.Identity(), return_documents=True, top_k=3)
    assert all(isinstance(entry, RankedDocument) for entry in raw)
    assert [(entry.index, entry.text) for entry in raw] == [(entry["corpus_id"], entry["text"]) for entry in best]
    assert [entry.score for entry in raw] == pytest.approx([entry["score"] for entry in best], rel=1e-5)


def test_pairs_are_classified_as_by_the_pipeline(classifier: Engine, nli: Path) -> None:
    from transformers import pipeline

    run: Any = pipeline("text-classification", model=str(nli), device="cpu", top_k=None)
    inputs = [*((QUERY, document) for document in DOCUMENTS), *DOCUMENTS[:2]]
    found = classifier.classify(inputs, truncate=True)
    for one, labels in zip(inputs, found, strict=True):
        named = one if isinstance(one, str) else {"text": one[0], "text_pair": one[1]}
        expected = run([named], truncation=True)[0]
        assert [entry.label for entry in labels] == [entry["label"] for entry in expected]
        assert [entry.score for entry in labels] == pytest.approx([e["score"] for e in expected], rel=1e-5)
    assert list(classifier.classify_stream(inputs, truncate=True))[-1] == found[-1]
    swapped = classifier.classify([(DOCUMENTS[0], QUERY)])[0]
    assert {entry.label: round(entry.score, 3) for entry in swapped} != {
        entry.label: round(entry.score, 3) for entry in found[0]
    }


def test_inputs_that_are_no_pairs_are_refused(classifier: Engine) -> None:
    for wrong in (("a", "b", "c"), ("a",), 5):
        with pytest.raises(UsageError, match=r"'texts\[1\]' is of type .*; it must be a str, or a tuple of two"):
            classifier.classify(["a", wrong])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"'texts\[0\]\[1\]' is of type int"):
        classifier.classify([("a", 5)])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=r"'texts\[0\]\[1\]' is an empty string"):
        classifier.classify([("a", ""), "b"])
    with pytest.raises(UsageError, match=r"'classify', not 'zero-shot'; use classify\(\)"):
        classifier.zero_shot("a", LABELS)


def test_labels_of_the_caller_are_scored_as_by_the_pipeline(nli: Path) -> None:
    from transformers import pipeline

    run: Any = pipeline("zero-shot-classification", model=str(nli), device="cpu")
    texts, template = DOCUMENTS[:4], "The text is about {}!"

    def same(found: Any, expected: Any) -> None:
        assert [entry.label for entry in found] == expected["labels"]
        assert [entry.score for entry in found] == pytest.approx(expected["scores"], rel=1e-5)

    async def asynchronously() -> Any:
        async def source() -> Any:
            for text in texts:
                yield text

        async with AsyncEngine(nli, task="zero-shot", **OPTIONS) as engine:
            return await engine.zero_shot(source(), LABELS, truncate=True), await engine.zero_shot(texts[0], "x, y")

    with Engine(nli, task="zero-shot", **OPTIONS) as engine:
        for multi_label in (False, True):
            found = engine.zero_shot(texts, LABELS, multi_label=multi_label, truncate=True)
            for one, expected in zip(found, run(texts, LABELS, multi_label=multi_label), strict=True):
                same(one, expected)
        same(
            engine.zero_shot(texts[0], "a, b", hypothesis_template=template),
            run(texts[0], "a, b", hypothesis_template=template),
        )
        same(engine.zero_shot(texts[0], ["a"]), run(texts[0], ["a"]))
        many = engine.zero_shot(texts[:2] * 300, LABELS)
        assert len(many) == 600
        same(many[599], run(texts[1], LABELS))
        with pytest.raises(RequestError, match=r"the pair of 'texts' and 'labels\[0\]' has"):
            engine.zero_shot(texts[2], LABELS)
        with pytest.raises(UsageError, match=r"'texts\[1\]' is of type int"):
            engine.zero_shot(["a", 5], LABELS)  # type: ignore[list-item]
        with pytest.raises(RequestError, match="'labels' has no labels"):
            engine.zero_shot("a", [])
    every, single = asyncio.run(asynchronously())
    same(every[3], run(texts[3], LABELS))
    same(single, run(texts[0], "x, y"))
