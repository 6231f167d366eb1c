"""Hub ids, against a local hub server: downloads, the cache, and a hub that does not respond."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save

from launcher.host.model.hub import is_complete, wanted_files
from tests.host.model.test_resolve import TOKENIZER

COMMIT = "0123456789abcdef0123456789abcdef01234567"

REPO = "someone/small-encoder"

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "model.safetensors": save({"a": np.zeros((50, 8), np.float32)}),
    "modules.json": json.dumps(
        [
            {"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
    ).encode(),
    "1_Pooling/config.json": b'{"word_embedding_dimension": 8, "pooling_mode_cls_token": true}',
    "pytorch_model.bin": b"not wanted",
    "onnx/model.onnx": b"not wanted",
    "README.md": b"not wanted",
}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that its client uses for a public model."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        type(self).asked.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            self._answer(json.dumps(entries).encode())
        elif path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._answer(FILES.get(path.split(COMMIT + "/")[1]))
        else:
            self._answer(None, code="RepoNotFound")

    def _answer(self, data: bytes | None, code: str = "EntryNotFound") -> None:
        self.send_response(200 if data is not None else 404)
        if data is None:
            self.send_header("X-Error-Code", code)
        else:
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET" and data:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one model, and the list of its requests."""
    handler = type("OneHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
import msgspec
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
try:
    print(msgspec.json.encode(resolve(ModelOptions(model=sys.argv[1], hub_seconds=1.0))).decode())
except UsageError as error:
    sys.exit(str(error))
"""


def resolve_in_subprocess(repo: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a separate process, because the client reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, repo],
        env={**kept, "HF_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=60,  # a request to the hub that never ends fails here
        check=False,
    )


@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_with_the_needed_files(hub, tmp_path) -> None:
    address, asked = hub
    first = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT=address)
    assert first.returncode == 0, first.stderr
    model_info = json.loads(first.stdout)
    assert (model_info["name"], model_info["pooling"], model_info["weight_bytes"]) == (REPO, "cls", 1600)
    fetched = {line.split(COMMIT + "/")[1] for line in asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {
        "config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json",
    }  # fmt: skip

    asked.clear()
    second = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT=address)
    assert json.loads(second.stdout) == model_info
    assert asked == []

    offline = resolve_in_subprocess(REPO, tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == model_info


@pytest.mark.slow
def test_a_cached_copy_without_sentence_files_is_completed_or_its_use_is_noted(hub, tmp_path) -> None:
    """transformers caches only its own files; without the others, vectors would be pooled differently."""
    address, _ = hub
    resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT=address)
    (snapshot,) = tmp_path.glob(f"hub/models--*/snapshots/{COMMIT}")
    (snapshot / "modules.json").unlink()
    (snapshot / "1_Pooling/config.json").unlink()

    alone = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "using the cached copy, because the Hub could not be reached" in json.loads(alone.stdout)["notes"][0]

    completed = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT=address)
    assert json.loads(completed.stdout)["pooling"] == "cls"


def test_the_error_for_an_unknown_model_says_where_it_was_searched(hub, tmp_path) -> None:
    address, _ = hub
    made = resolve_in_subprocess("someone/nothing", tmp_path, HF_ENDPOINT=address)

    assert made.returncode == 1
    assert f"and at {address}, where it does not exist or is private" in made.stderr


def test_offline_mode_is_named_as_the_reason(tmp_path) -> None:
    made = resolve_in_subprocess(REPO, tmp_path, HF_HUB_OFFLINE="1")

    assert made.returncode == 1
    assert "HF_HUB_OFFLINE is set" in made.stderr
    assert str(tmp_path) in made.stderr


def test_a_hub_that_refuses_connections_is_an_immediate_error(tmp_path) -> None:
    made = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")

    assert made.returncode == 1
    assert "could not be reached" in made.stderr
    assert "demo, which does not need the Hub" in made.stderr


@pytest.mark.slow
def test_a_hub_that_never_responds_is_an_error_after_the_timeout(tmp_path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    made = resolve_in_subprocess(REPO, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    silent.close()

    assert made.returncode == 1
    assert "could not be reached" in made.stderr


def test_an_invalid_hub_id_is_an_error(tmp_path) -> None:
    assert "nor a valid Hub id" in resolve_in_subprocess("some--one/..", tmp_path).stderr


def test_only_torch_weights_of_one_format_are_downloaded() -> None:
    names = [
        *FILES,
        "pytorch_model-00001-of-00002.bin",
        "modeling_own.py",
        "0_Transformer/model.safetensors",
        "a/b/c.json",
    ]

    assert wanted_files(names, with_code=False) == [
        "0_Transformer/model.safetensors",
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ]
    assert "modeling_own.py" in wanted_files(names, with_code=True)
    assert wanted_files(["pytorch_model.bin", "config.json"], with_code=False) == ["config.json", "pytorch_model.bin"]


def test_a_copy_is_complete_if_it_has_the_files_of_its_modules(tmp_path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert is_complete(tmp_path)

    (tmp_path / "1_Pooling/config.json").unlink()
    assert not is_complete(tmp_path)


def test_the_weights_of_each_module_are_downloaded_in_one_format() -> None:
    names = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "2_Dense/config.json"]

    assert wanted_files(names, with_code=False) == [
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "model.safetensors",
    ]


def test_a_copy_without_the_weights_of_a_module_is_incomplete(tmp_path) -> None:
    modules = [("sentence_transformers.models.StaticEmbedding", "."), ("sentence_transformers.models.Dense", "1_Dense")]
    listed = [{"idx": 0, "name": kind, "path": path, "type": kind} for kind, path in modules]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "1_Dense").mkdir()
    (tmp_path / "1_Dense/config.json").write_text("{}")
    assert not is_complete(tmp_path)

    (tmp_path / "1_Dense/pytorch_model.bin").write_bytes(b"x")
    assert is_complete(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "model.safetensors"])
def test_a_copy_without_one_of_the_main_files_is_incomplete(tmp_path, name) -> None:
    for other in FILES.keys() - {name, "pytorch_model.bin"}:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(FILES[other])

    assert not is_complete(tmp_path)
