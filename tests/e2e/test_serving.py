"""Options of the server that change what is served, and bad requests to a real one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import Launch, Running, running

pytestmark = pytest.mark.slow

TINY = ("--model", "random:tiny", "--dtype", "fp32")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running(*TINY, "--instances", "2", "--token-ids", "accept") as server:
        yield server.wait_serving()


def test_a_classifier_answers_with_labels_and_scores(launch: Launch) -> None:
    with launch(*TINY, "--task", "classify", "--instances", "1") as server:
        server.wait_serving()
        reply = server.post("/predict", json={"inputs": ["a good day", "a bad day"]}).json()
    assert reply["task"] == "classify"
    assert len(reply["predictions"]) == 2
    for prediction in reply["predictions"]:
        scores = [entry["score"] for entry in prediction]
        assert {entry["label"] for entry in prediction} == {"LABEL_0", "LABEL_1"}
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1.0, abs=1e-5)


def test_a_reranker_ranks_documents_in_bodies_of_any_size(launch: Launch) -> None:
    documents = ["a good day", "a bad day", "rain"] + [f"document {number} " + "word " * 20 for number in range(800)]
    with launch(*TINY, "--task", "rerank", "--instances", "1", "--backend", "fake") as server:
        server.wait_serving()
        few, all_of_them = (
            server.post("/predict", json={"query": "weather", "documents": documents[:count]}).json()["predictions"]
            for count in (3, len(documents))
        )
        schemas = server.get("/openapi.json").json()["components"]["schemas"]
    assert sorted(entry["index"] for entry in few) == [0, 1, 2]
    assert len(all_of_them) == len(documents)
    scores = [entry["score"] for entry in all_of_them]
    assert scores == sorted(scores, reverse=True)
    assert [entry for entry in all_of_them if entry["index"] < 3] == few
    assert {"RerankRequest", "RerankResponse", "RankedDocument"} <= set(schemas)


def test_labels_of_a_request_are_scored(launch: Launch) -> None:
    body = {"inputs": ["a good day", "rain"], "candidate_labels": "weather, food"}
    with launch(*TINY, "--task", "zero-shot", "--instances", "1") as server:
        server.wait_serving()
        reply = server.post("/predict", json=body).json()
        independent = server.post("/predict", json={**body, "multi_label": True}).json()
    assert reply["task"] == "zero-shot"
    for prediction in reply["predictions"]:
        assert {entry["label"] for entry in prediction} == {"weather", "food"}
        assert sum(entry["score"] for entry in prediction) == pytest.approx(1.0, abs=1e-5)
    assert independent["predictions"] != reply["predictions"]


def test_an_embedder_answers_predict_with_the_vectors_of_embeddings(tiny: Running) -> None:
    predicted = tiny.post("/predict", json={"inputs": ["one", "two"]}).json()["predictions"]
    embedded = [d["embedding"] for d in tiny.embed(["one", "two"]).json()["data"]]
    assert predicted == embedded


def test_classes_send_short_and_long_texts_to_their_instances(launch: Launch) -> None:
    with launch(*TINY, "--classes", "16:1,max:1") as server:
        server.wait_serving()
        for _ in range(10):
            assert server.embed("short").status_code == 200
            assert server.embed("a long text " * 20).status_code == 200
        metrics = server.get("/metrics").text
        instances = server.info()["instances"]
    assert [i["class"] for i in instances] == [
        {"min_length": 1, "max_length": 16},
        {"min_length": 17, "max_length": instances[1]["class"]["max_length"]},
    ]
    tokens = {
        instance: float(value)
        for instance, value in re.findall(r'^launcher_batch_tokens_sum{.*instance="(\d)".*} (\S+)$', metrics, re.M)
    }
    assert tokens["0"] == 10 * 3
    assert tokens["1"] > 10 * 60


def test_truncation_is_refused_or_reported(tiny: Running) -> None:
    text = "word " * 5000
    refused = tiny.embed(text)
    assert refused.status_code == 400
    assert "5002" in refused.json()["error"]["message"]
    cut = tiny.embed(text, truncate=True)
    assert cut.status_code == 200
    assert cut.json()["usage"]["truncated"] == [0]


BAD: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b'{"input": "\xff"}', 400),
    (b'{"input": "\\ud800"}', 400),
    (b'{"input": 3}', 400),
    (b'{"input": null}', 400),
    (b'{"input": []}', 400),
    (b'{"input": ""}', 400),
    (b'{"input": ["fine", ""]}', 400),
    (b'{"input": [1, 99999999]}', 400),
    (b'{"input": [-1]}', 400),
    (b'{"input": [[1], "text"]}', 400),
    (b'{"input": "x", "model": "another"}', 404),
    (b'{"input": "x", "dimensions": 0}', 400),
    (b'{"input": "x", "dimensions": true}', 400),
    (b'{"input": "x", "dimensions": 100000}', 400),
    (b'{"input": "x", "encoding_format": "hex"}', 400),
    (b"[" * 100_000, 400),
    (b'{"input": "' + b"x" * (8 * 1024 * 1024) + b'"}', 413),
    (b'{"input": [' + b",".join([b'"x"'] * 2049) + b"]}", 413),
]


def test_bad_bodies_get_a_clear_error_and_do_no_harm(tiny: Running) -> None:
    for body, status in BAD:
        reply = tiny.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == status, (body[:60], reply.text)
        error: dict[str, Any] = reply.json()["error"]
        assert len(error["message"]) > 10
    assert tiny.embed("still fine").status_code == 200
    assert all(instance["restarts"] == 0 for instance in tiny.info()["instances"])


def test_wrong_methods_types_and_paths_are_refused(tiny: Running) -> None:
    assert tiny.get("/v1/embeddings").status_code == 405
    assert tiny.post("/health").status_code == 405
    assert tiny.post("/v1/embeddings", content="x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert tiny.get("/nothing/here").status_code == 404


def test_data_that_is_not_http_is_answered_or_the_connection_closed(tiny: Running) -> None:
    host, port = tiny.address.removeprefix("http://").split(":")
    for garbage in (b"\x00\x01\x02\x03\r\n\r\n", b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(garbage)
            answer = connection.recv(1000)
            assert answer == b"" or b" 400 " in answer
    assert tiny.get("/health").status_code == 200


# An encoding whose ids are the bytes of a text; found before tiktoken's own module of the same name.
BYTES = """
ENCODING_CONSTRUCTORS = {"cl100k_base": lambda: {
    "name": "cl100k_base", "pat_str": r"\\\\S+|\\\\s+", "special_tokens": {},
    "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
}}
"""


def test_ids_of_a_tiktoken_encoding_give_the_vectors_of_their_texts(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "openai_public.py").write_text(BYTES)
    texts = ["one text", "another café 😀", "x"]
    encoding = ("--token-ids", "cl100k_base")
    with launch(*TINY, "--instances", "1", *encoding, env={"PYTHONPATH": str(tmp_path)}) as server:
        server.wait_serving()
        from_texts, from_ids = server.embed(texts), server.embed([list(text.encode()) for text in texts])
        refused = server.embed([[120], [256]])
    assert from_ids.status_code == 200
    assert from_ids.json()["usage"] == from_texts.json()["usage"]
    found, expected = ([d["embedding"] for d in reply.json()["data"]] for reply in (from_ids, from_texts))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected[0], expected[1], rtol=1e-2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "token_out_of_range")


def test_an_encoding_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher", *TINY, "--port", "0", "--token-ids", "cl100k_base"]
    environment = {
        **os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"store that file as {tmp_path}/" in done.stderr
    assert "started as pid" not in done.stderr
