"""Sparse vectors, token vectors and filled masks of engines and servers, against the libraries."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher import Engine, FilledMask
from launcher.errors import RequestError, UsageError
from tests.e2e.running import running
from tests.models import families, references, sentence_models, vocabularies

pytestmark = pytest.mark.slow

TEXTS = [
    "hello world",
    "a",
    "Where is the nearest station, and how late is it?",
    " ".join(["The harvest was late that year."] * 12),
    "Ça va, Zoë? 🙂 In Köln.",
]
MASKED = ["Paris is the [MASK] of France.", "The [MASK] was [MASK] that year, it's late."]
OPTIONS: dict[str, Any] = {"instances": 1, "dtype": "fp32", "reserve_cores": 0}


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from launcher.host.model.resolve import demo_folder

    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(**sizes, initializer_range=0.3)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def splade(masked_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SparseEncoder

    folder = tmp_path_factory.mktemp("splade")
    encoder = SparseEncoder(str(masked_model), max_active_dims=50, prompts={"query": "query: "})
    encoder.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def sparse(splade: Path) -> Iterator[Engine]:
    with Engine(splade, **OPTIONS) as engine:
        yield engine


def dense(vectors: Any, width: int) -> np.ndarray:
    found = np.zeros((len(vectors), width), dtype=np.float32)
    for row, (indices, values) in zip(found, vectors, strict=True):
        row[indices] = values
    return found


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_sparse_vectors_are_those_of_sentence_transformers(
    sparse: Engine, splade: Path, prompt_name: str | None
) -> None:
    from sentence_transformers import SparseEncoder

    expected = SparseEncoder(str(splade)).encode(TEXTS, prompt_name=prompt_name, convert_to_sparse_tensor=False).numpy()
    found = sparse.embed_sparse(TEXTS, prompt_name=prompt_name)
    assert [len(vector.indices) for vector in found] == [50] * len(TEXTS)
    assert np.linalg.norm(dense(found, expected.shape[1]) - expected) <= 1e-5 * np.linalg.norm(expected)
    one = sparse.embed_sparse(TEXTS[0], prompt_name=prompt_name)
    assert one.indices.dtype == np.int32
    assert one.indices.tolist() == found[0].indices.tolist()
    stream = sparse.embed_sparse_stream(iter(TEXTS), prompt_name=prompt_name)
    assert [vector.indices.tolist() for vector in stream] == [vector.indices.tolist() for vector in found]
    with pytest.raises(UsageError, match=r"'sparse-embed', not 'embed'; use embed_sparse\(\)"):
        sparse.embed("text")


def candidates(masks: list[list[FilledMask]]) -> list[list[tuple[int, str, str]]]:
    return [[(one.token, one.token_str, one.sequence) for one in mask] for mask in masks]


def scores(masks: list[list[FilledMask]]) -> list[float]:
    return [one.score for mask in masks for one in mask]


def test_masks_are_filled_as_in_the_pipeline(masked_model: Path) -> None:
    from transformers import pipeline

    expected: Any = pipeline("fill-mask", model=str(masked_model), top_k=7)(MASKED)
    with Engine(masked_model, **OPTIONS) as engine:
        found = engine.fill_mask(MASKED, top_k=7)
        alone = engine.fill_mask(MASKED[0], top_k=2)
        streamed = list(engine.fill_mask_stream(MASKED, top_k=7))
        with pytest.raises(RequestError, match=r"'texts\[1\]' has no mask token; mark the place to fill with \[MASK\]"):
            engine.fill_mask([MASKED[0], "no mask"])
        with pytest.raises(UsageError, match="must be 1 to 100"):
            engine.fill_mask(MASKED, top_k=101)
    # Other batches round differently in the last digits.
    for one, other in [(alone, [found[0][0][:2]]), *zip(streamed, found, strict=True)]:
        assert candidates(one) == candidates(other)
        assert scores(one) == pytest.approx(scores(other), rel=1e-5)
    # The pipeline omits the list of masks if there is only one.
    for masks, wanted in zip(found, [[expected[0]], expected[1]], strict=True):
        for found_here, others in zip(masks, wanted, strict=True):
            assert [(one.token, one.token_str, one.sequence) for one in found_here] == [
                (one["token"], one["token_str"], one["sequence"]) for one in others
            ]
            assert [one.score for one in found_here] == pytest.approx([one["score"] for one in others], rel=1e-5)


def test_token_vectors_are_the_token_embeddings_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    from launcher.host.model.resolve import demo_folder

    expected: Any = SentenceTransformer(str(demo_folder())).encode(TEXTS, output_value="token_embeddings")
    with Engine("demo", task="token-embed", **OPTIONS) as engine:
        found = engine.embed_tokens(TEXTS)
        one = engine.embed_tokens(TEXTS[0])
    assert one.shape == found[0].shape
    for vectors, wanted in zip(found, expected, strict=True):
        assert vectors.shape == tuple(wanted.shape)
        assert np.linalg.norm(vectors - wanted.numpy()) <= 1e-5 * np.linalg.norm(wanted.numpy())


QUESTIONS = [
    ("Where is the station?", "The nearest station is behind the Old Mill, and it is late."),
    ("When was the harvest?", " ".join(["The harvest was late that year."] * 90) + " Then came Winter."),
]


def test_questions_are_answered_from_the_logits_of_all_windows(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

    from launcher.front.pairs import PairLayout
    from launcher.front.tasks.answers import AnswerRules, Window
    from launcher.front.windows import Windows
    from launcher.host.model.resolve import demo_folder

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForQuestionAnswering(BertConfig(**sizes, initializer_range=0.3)).eval()
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path / name)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    layout = PairLayout.of(tokenizer.encode("a", "a"))
    assert layout is not None
    windows = [Windows(tokenizer.encode(*pair), layout, 512) for pair in QUESTIONS]
    assert [len(found) for found in windows] == [1, 3]
    expected = []
    for (question, context), found in zip(QUESTIONS, windows, strict=True):
        encoded = plain(
            question, context, truncation="only_second", max_length=384, stride=128, return_overflowing_tokens=True
        )
        parts = []
        for ids, types, window in zip(encoded["input_ids"], encoded["token_type_ids"], found, strict=True):
            with torch.no_grad():
                output = model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            logits = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1).numpy()
            parts.append(Window(np.array(ids), window.spans, logits))
        expected.append(AnswerRules(101, 4, 15, True).answers(context, parts))
    with Engine(tmp_path, **OPTIONS) as engine:
        found = engine.answer(QUESTIONS, top_k=4, handle_impossible_answer=True)
        one = engine.answer(QUESTIONS[0])
    for answers, wanted in zip(found, expected, strict=True):
        assert [(a.start, a.end, a.answer) for a in answers] == [(a.start, a.end, a.answer) for a in wanted]
        assert [a.score for a in answers] == pytest.approx([a.score for a in wanted], rel=1e-4)
    assert [a.answer for a in one] == [found[0][0].answer]


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router") / "model"
    prompts = {"query": "what is: "}
    families.save_router(folder, family="bert", tokenizer=vocabularies.bert, prompts=prompts, allow_empty_key=False,
                         default_route=None)  # fmt: skip
    return folder


@pytest.mark.parametrize("route", ["query", "document"])
def test_an_engine_takes_the_route_of_the_call(routed: Path, route: str) -> None:
    expected = [row[0] for row in references.sparse_route(routed, TEXTS, route)]
    with Engine(routed, **OPTIONS) as engine:
        found = engine.embed_sparse(TEXTS, route=route, truncate=True)
        one = engine.embed_sparse(TEXTS[0], route=route, truncate=True)
        stream = list(engine.embed_sparse_stream(iter(TEXTS), route=route, truncate=True))
        with pytest.raises(UsageError, match="'route' must be 'query' or 'document'"):
            engine.embed_sparse(TEXTS)
    for vectors in (found, [one], stream):
        for vector, wanted in zip(vectors, expected, strict=False):
            assert vector.indices.tolist() == np.flatnonzero(wanted).tolist()
            assert np.linalg.norm(vector.values - wanted[vector.indices]) <= 1e-5 * np.linalg.norm(wanted)
    assert [len(found), len(stream)] == [len(TEXTS)] * 2


def test_a_server_takes_the_route_of_the_request(routed: Path) -> None:
    options = ("--model", str(routed), "--dtype", "fp32", "--instances", "1", "--token-ids", "accept")
    with running(*options) as started:
        started.wait_serving()
        answers = {
            route: started.post("/predict", json={"inputs": TEXTS, "route": route, "truncate": True}).json()
            for route in ("query", "document")
        }
        missing = started.post("/predict", json={"inputs": TEXTS})
        wrong = started.post("/predict", json={"inputs": TEXTS, "route": "passage"})
        ids = started.post("/predict", json={"inputs": [[5, 6]], "route": "query"})
    for route, answer in answers.items():
        expected = references.sparse_route(routed, TEXTS, route)
        for tokens, (wanted,) in zip(answer["predictions"], expected, strict=True):
            assert [token["index"] for token in tokens] == np.flatnonzero(wanted).tolist()
            values = np.array([token["value"] for token in tokens])
            assert np.linalg.norm(values - wanted[wanted != 0]) <= 1e-5 * np.linalg.norm(wanted)
    assert [response.status_code for response in (missing, wrong, ids)] == [400] * 3
    assert all("'query' or 'document'" in response.text for response in (missing, wrong))
    assert "take texts" in ids.text


def test_an_embedder_takes_the_route_of_the_request(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    sentence_models.save_routes(
        folder,
        query=lambda: [sentence_models.static(families.HIDDEN)],
        document=lambda: [sentence_models.transformer("bert", vocabularies.bert), sentence_models.pooling("cls")],
        prompts={"query": "what is: "},
    )
    texts = ["one", "two words", "three words here"]
    expected = {route: np.concatenate(references.route(folder, texts, route)) for route in ("query", "document", None)}
    assert not np.allclose(expected["query"], expected["document"], rtol=0.01)
    with running("--model", str(folder), "--dtype", "fp32", "--instances", "1", "--token-ids", "accept") as started:
        started.wait_serving()
        for route, wanted in expected.items():
            answers = started.post("/v1/embeddings", json={"input": texts, "route": route}).json()["data"]
            predictions = started.post("/predict", json={"inputs": texts, "route": route}).json()["predictions"]
            for found in ([answer["embedding"] for answer in answers], predictions):
                assert np.linalg.norm(np.array(found) - wanted) <= 1e-5 * np.linalg.norm(wanted)
        wrong = started.post("/v1/embeddings", json={"input": texts, "route": "passage"})
        ids = started.post("/v1/embeddings", json={"input": [[5, 6]], "route": "query"})
    assert [response.status_code for response in (wrong, ids)] == [400] * 2
    assert "'query' or 'document'" in wrong.text
    with Engine(folder, **OPTIONS) as engine:
        for route, wanted in expected.items():
            streamed = np.stack(list(engine.embed_stream(iter(texts), route=route)))
            for found in (engine.embed(texts, route=route), streamed):
                assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("task", ["sparse-embed", "token-embed", "fill-mask", "question-answering"])
def test_each_task_is_served_over_http(task: str) -> None:
    with running("--model", "random:tiny", "--task", task, "--backend", "fake", "--instances", "1") as started:
        started.wait_serving()
        inputs: Any = ["one [MASK]", "[MASK]"]
        if task == "question-answering":
            inputs = [{"question": text, "context": "one two"} for text in inputs]
        answer = started.post("/predict", json={"inputs": inputs}).json()
    assert answer["task"] == task
    assert len(answer["predictions"]) == 2
    assert all(answer["predictions"])


def test_contexts_with_many_windows_wait_for_room_in_a_short_queue() -> None:
    options = {"backend": "fake", "instances": 1, "max_queue_items": 16, "oversubscribe": True}
    # About 2,000 tokens: 7 or 8 windows of 384.
    questions = [("Where?", "word " * 2000)] * 12
    with Engine("random:tiny", task="question-answering", **options) as engine:
        assert len(engine.answer(questions)) == 12
        with pytest.raises(RequestError, match=r"'questions\[1\]\[1\]' is read in \d+ windows"):
            engine.answer([questions[0], ("Where?", "word " * 20_000)])
