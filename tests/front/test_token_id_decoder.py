"""Token ids of a tiktoken encoding are decoded and give the results of their texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiktoken

from launcher.errors import RequestError
from launcher.front.token_id_decoder import CHUNK_IDS, TokenIdDecoder
from launcher.options import FrontOptions

pytestmark = pytest.mark.anyio

TEXT_CHARACTERS = 200_000
BYTES = {bytes([byte]): byte for byte in range(256)}
WORDS = {word.encode(): 256 + rank for rank, word in enumerate(("w1", "w2", "w3", " w1", " w2", " w3"))}
END = 300  # the ids from 262 to 299 do not exist


@pytest.fixture(scope="session")
def encoding() -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "small", pat_str=r" ?\S+|\s+", mergeable_ranks={**BYTES, **WORDS}, special_tokens={"<|endoftext|>": END}
    )


@pytest.fixture
def decoder(encoding: tiktoken.Encoding) -> TokenIdDecoder:
    return TokenIdDecoder(encoding, text_characters=TEXT_CHARACTERS)


@pytest.fixture
async def client(make_front: Any, make_client: Any, model_info: Any, decoder: TokenIdDecoder) -> Any:
    front = make_front()
    await front.serving()
    services = front.services(model_info, FrontOptions(token_ids="cl100k_base"), id_decoder=decoder)
    async with make_client(services) as client:
        yield client


@pytest.mark.parametrize(("path", "field"), [("/predict", "inputs"), ("/v1/embeddings", "input")])
@pytest.mark.parametrize(
    "texts",
    [["w1 w2 w3"], ["w1", "w2 w3 w1", "\u00e4 \U0001f600 w2"], [" ".join(["w3", "w1 "] * 6)] * 1000],
    ids=["one", "several", "in a thread"],
)
async def test_ids_of_the_encoding_give_the_results_of_their_texts(
    path: str, field: str, texts: list[str], client: Any, encoding: tiktoken.Encoding
) -> None:
    ids = [encoding.encode(text) for text in texts]
    assert max(map(max, ids)) >= 256
    from_texts = (await client.post(path, json={field: texts})).json()
    # As LangChain's OpenAIEmbeddings sends them: lists of ids, with the encoding of the response.
    body = {field: ids, "model": "words"} | ({"encoding_format": "float"} if field == "input" else {})
    answer = await client.post(path, json=body)
    assert answer.status_code == 200
    assert answer.json() == from_texts
    if len(ids) == 1:
        assert (await client.post(path, json={field: ids[0]})).json() == from_texts


async def test_a_long_text_is_refused_or_truncated_like_a_text(client: Any, encoding: tiktoken.Encoding) -> None:
    text = " ".join(["w1", "w2"] * 20)
    body = {"input": [encoding.encode(text)]}
    refused = await client.post("/v1/embeddings", json=body)
    assert refused.status_code == 400
    assert refused.json() == (await client.post("/v1/embeddings", json={"input": [text]})).json()
    cut = await client.post("/v1/embeddings", json={**body, "truncate": True})
    assert cut.json() == (await client.post("/v1/embeddings", json={"input": [text], "truncate": True})).json()
    assert cut.json()["usage"]["truncated"] == [0]


@pytest.mark.parametrize("as_array", [False, True])
def test_texts_are_decoded_as_tiktoken_does(
    decoder: TokenIdDecoder, encoding: tiktoken.Encoding, as_array: bool
) -> None:
    lists = [
        encoding.encode("w1 w2 \U0001f600"),
        list("\U0001f600".encode()[:2]),  # half of a character, where a client has cut the ids
        [END, 256],
        [256] * (2 * CHUNK_IDS + 1),
    ]
    given: Any = [np.array(ids, dtype=np.int64) for ids in lists] if as_array else lists
    found = decoder.texts(given, "input")
    assert found == [encoding.decode(ids) for ids in lists]
    assert found[1:3] == ["\ufffd", "<|endoftext|>w1"]


def test_a_character_that_two_chunks_share_is_decoded(decoder: TokenIdDecoder) -> None:
    ids = [256] * (CHUNK_IDS - 1) + list("\u00e4".encode())
    assert decoder.texts([ids], "input") == ["w1" * (CHUNK_IDS - 1) + "\u00e4"]


@pytest.mark.parametrize(
    ("ids", "code", "message"),
    [
        ([270], "token_out_of_range", "'input[1]' contains the token id 270, which is not in the encoding small"),
        ([256, END + 1], "token_out_of_range", "token id 301, which is not in the encoding small; its ids are 0 to"),
        ([-1], "token_out_of_range", "token id -1"),
        ([2**32], "token_out_of_range", "token id 4294967296"),
        ([10**30], "token_out_of_range", "token id of more than 20 digits"),
        ([], "empty_input", "'input[1]' is an empty list of token ids"),
        ([256] * 500_000, "too_long", "'input[1]' decodes to more than 200000 characters"),
    ],
    ids=["gap", "too high", "negative", "33 bits", "huge", "empty", "too long"],
)
def test_ids_that_cannot_be_decoded_are_refused(
    decoder: TokenIdDecoder, ids: list[int], code: str, message: str
) -> None:
    with pytest.raises(RequestError) as error:
        decoder.texts([[256], ids], "input")
    assert (error.value.status, error.value.code, error.value.param) == (400, code, "input")
    assert message in str(error.value)


async def test_an_id_that_does_not_exist_is_refused_over_http(client: Any) -> None:
    answer = await client.post("/v1/embeddings", json={"input": [[256, 270]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "token_out_of_range")


async def test_ids_are_not_decoded_by_a_server_that_accepts_those_of_its_model(
    make_front: Any, make_client: Any, model_info: Any, vector_of: Any
) -> None:
    front = make_front()
    await front.serving()
    async with make_client(front.services(model_info, FrontOptions(token_ids="accept"))) as client:
        answer = await client.post("/v1/embeddings", json={"input": [[5]]})
    np.testing.assert_array_equal(np.float32(answer.json()["data"][0]["embedding"]), vector_of([5]))


LOAD = """
import sys
from launcher.errors import UsageError
from launcher.front.token_id_decoder import load_decoder
try:
    decoder = load_decoder(sys.argv[1], text_characters=100)
except UsageError as error:
    sys.exit(str(error))
print(decoder and decoder.texts([[119, 49]], "input"))
"""
# Found before tiktoken's own module of the same name.
PLUGIN = """
ENCODING_CONSTRUCTORS = {"cl100k_base": lambda: {
    "name": "cl100k_base", "pat_str": r"\\\\S+|\\\\s+", "special_tokens": {},
    "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
}}
"""


def load(encoding: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code + LOAD, encoding],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("policy", ["refuse", "accept"])
def test_without_an_encoding_nothing_is_loaded(policy: str) -> None:
    found = load(policy, "import sys; sys.modules['tiktoken'] = None\n")
    assert (found.returncode, found.stdout) == (0, "None\n")


def test_an_encoding_of_a_plugin_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "openai_public.py").write_text(PLUGIN)
    found = load("cl100k_base", PYTHONPATH=str(tmp_path))
    assert (found.returncode, found.stdout) == (0, "['w1']\n"), found.stderr
    refused = load("o200k_base", PYTHONPATH=str(tmp_path))
    assert refused.returncode == 1
    assert "has the encodings cl100k_base; for others, install a newer version" in refused.stderr


def test_without_the_package_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    found = load("cl100k_base", "import importlib.util as u; u.find_spec = lambda name: None\n")
    assert found.returncode == 1
    assert found.stderr.strip() == (
        "--token-ids cl100k_base: the package tiktoken is not installed; run: pip install 'launcher[tiktoken]'"
    )


@pytest.mark.parametrize("with_folder", [True, False])
def test_an_encoding_that_cannot_be_downloaded_is_an_error_that_says_where_its_file_belongs(
    tmp_path: Path, with_folder: bool
) -> None:
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "TMPDIR": str(tmp_path)}
    folder = str(tmp_path / "kept")
    found = load("cl100k_base", **offline, **({"TIKTOKEN_CACHE_DIR": folder} if with_folder else {}))
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    assert found.returncode == 1
    assert f"{url} could not be downloaded (ProxyError); store that file as " in found.stderr
    assert found.stderr.strip().endswith(
        f"{folder}/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
        if with_folder
        else "9b5ad71b2ce5302211f9c61530b329a4922fc6a4, and set TIKTOKEN_CACHE_DIR to that folder"
    )


def test_every_encoding_of_the_option_is_one_of_tiktoken() -> None:
    from launcher.options.choices import TokenIdsPolicy

    names = set(msgspec.json.schema(TokenIdsPolicy)["enum"]) - {"refuse", "accept"}
    assert "cl100k_base" in names
    assert names <= set(tiktoken.list_encoding_names())
