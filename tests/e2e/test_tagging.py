"""A tagger over HTTP against plain transformers, text by text: packed, padded, in bf16, split over instances."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import Launch, Running, running
from tests.e2e.test_results import sentences
from tests.worker.taggers import LABELS, save_tagger

pytestmark = pytest.mark.slow

# Largest difference of a score.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.08}
Tokens = list[dict[str, Any]]


def texts() -> list[str]:
    return [*sentences(80), "Ça va, Zoë? 🙂 In Köln.", "  white   space \n\t around ", "Müller", "東京 is Tokyo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launcher.host.model.resolve import demo_folder

    folder = tmp_path_factory.mktemp("tagger")
    save_tagger(folder, demo_folder())
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, tuple[Tokens, Tokens]]:
    """The result of transformers for each text alone in fp32: each real token with all its scores, and the entities of
    its own pipeline.
    """
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    joined = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    found = {}
    for text in texts():
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True)
        spans, special = encoded.pop("offset_mapping")[0].tolist(), encoded.pop("special_tokens_mask")[0].tolist()
        with torch.inference_mode():
            scores = torch.softmax(model(**encoded).logits[0], dim=1).numpy()
        tokens = [
            {"scores": row, "start": start, "end": end}
            for row, (start, end), mask in zip(scores, spans, special, strict=True)
            if not mask
        ]
        found[text] = (tokens, joined(text))
    return found


@pytest.fixture(scope="module", params=[("fp32", "auto"), ("fp32", "sorted"), ("bf16", "auto"), ("bf16", "sorted")])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    dtype, layout = request.param
    options = ("--instances", "2", "--dtype", dtype, "--layout", layout, "--token-ids", "accept")
    with running("--model", str(folder), *options) as started:
        started.wait_serving()
        packed = [instance["worker"]["packed"] for instance in started.info()["instances"]]
        assert packed == [layout == "auto"] * 2
        yield started


def predict(server: Running, inputs: Any, **more: Any) -> Any:
    answer = server.post("/predict", json={"inputs": inputs, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def check_tokens(text: str, found: Tokens, expected: Tokens, most: float) -> int:
    """Compare the tokens of a text; returns how many of them have a label that rounding cannot change."""
    sure = 0
    assert [(token["start"], token["end"]) for token in found] == [(t["start"], t["end"]) for t in expected]
    for token, wanted in zip(found, expected, strict=True):
        scores = wanted["scores"]
        assert token["text"] == text[token["start"] : token["end"]]
        assert token["score"] == pytest.approx(scores[LABELS.index(token["label"])], abs=most)
        second, best = np.sort(scores)[-2:]
        if best - second > 2 * most:
            sure += 1
            assert token["label"] == LABELS[int(scores.argmax())]
    return sure


def test_tokens_have_the_labels_and_scores_of_transformers(server: Running, plain: Any) -> None:
    most = TOLERANCE[server.info()["model"]["dtype"]]
    found = predict(server, list(plain), aggregation="none")

    sure = total = 0
    for (text, (tokens, _)), entries in zip(plain.items(), found, strict=True):
        sure += check_tokens(text, entries, tokens, most)
        total += len(tokens)
    assert total > 1000
    assert sure > total * (0.99 if most < 0.01 else 0.6)
    for text in list(plain)[:5]:
        check_tokens(text, *predict(server, text, aggregation="none"), plain[text][0], most)


def test_entities_are_those_of_transformers_own_pipeline(server: Running, plain: Any) -> None:
    if server.info()["model"]["dtype"] != "fp32":
        pytest.skip("one label that rounding changes makes other entities")
    found = predict(server, list(plain))

    assert sum(map(len, found)) > 100
    for (text, (_, expected)), entities in zip(plain.items(), found, strict=True):
        assert [(e["label"], e["start"], e["end"]) for e in entities] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        assert [e["score"] for e in entities] == pytest.approx([float(e["score"]) for e in expected], abs=1e-4)
        assert all(text[e["start"] : e["end"]] == e["text"] for e in entities)


def test_token_ids_give_the_same_result_as_their_text(server: Running, plain: Any, folder: Path) -> None:
    from tokenizers import Tokenizer

    most = TOLERANCE[server.info()["model"]["dtype"]]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    some = list(plain)[::7]
    found = predict(server, [encoding.ids for encoding in tokenizer.encode_batch(some)])
    for text, entries in zip(some, found, strict=True):
        tokens = plain[text][0]
        assert [entry["index"] for entry in entries] == list(range(1, len(tokens) + 1))
        for entry, wanted in zip(entries, tokens, strict=True):
            assert set(entry) == {"label", "score", "index"}
            assert entry["score"] == pytest.approx(wanted["scores"][LABELS.index(entry["label"])], abs=most)


def test_inputs_that_are_too_long_are_refused_or_truncated(server: Running) -> None:
    text = "word " * 600
    assert server.post("/predict", json={"inputs": text}).json()["error"]["code"] == "too_long"
    answer = server.post("/predict", json={"inputs": ["a", text], "truncate": True, "aggregation": "none"})
    (_, cut), usage = answer.json()["predictions"], answer.json()["usage"]
    assert usage["truncated"] == [1]
    limit = server.info()["model"]["max_length"]
    assert [(token["start"], token["end"]) for token in cut] == [(5 * i, 5 * i + 4) for i in range(limit - 2)]


def test_info_and_metrics_show_the_task_and_the_batches(server: Running) -> None:
    model = server.info()["model"]
    assert (model["task"], model["width"], model["labels"]) == ("tag", 9, list(LABELS))
    counts = [float(v) for v in re.findall(r"^launcher_batch_items_sum{.*} (\S+)$", server.get("/metrics").text, re.M)]
    assert len(counts) == 2
    assert min(counts) > 0


def test_the_fake_backend_tags_too(launch: Launch) -> None:
    arguments = ("--model", "random:tiny", "--task", "tag", "--backend", "fake", "--instances", "1")
    with launch(*arguments) as server:
        server.wait_serving()
        (tokens,) = predict(server, "one two three", aggregation="none")
        assert [token["text"] for token in tokens] == ["one", "two", "three"]
        assert predict(server, "one two three", aggregation="none") == [tokens]
        assert server.embed("one").json()["error"]["code"] == "wrong_task"
