"""Prompts and modules of sentence-transformers through whole engines, compared with the library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher import AsyncEngine, Engine
from launcher.errors import RequestError, UsageError
from launcher.host.model.resolve import demo_folder

pytestmark = pytest.mark.slow

TEXTS = ["no", "A cat sat on the mat.", "It rained for days, and nobody went out. " * 5]
OPTIONS: dict[str, Any] = {"instances": 1, "dtype": "fp32", "reserve_cores": 0, "oversubscribe": True}
PROMPTS = {"query": "find this: ", "passage": "text: ", "default": "about: "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that leaves prompts out of its mean, with a default prompt and a Dense module."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    encoder, folder = tmp_path_factory.mktemp("encoder"), tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(3)
    BertModel(BertConfig(initializer_range=0.5, max_position_embeddings=64, **sizes)).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(demo_folder(verify=False), model_max_length=64).save_pretrained(encoder)
    modules = [Transformer(str(encoder)), Pooling(32, "mean", include_prompt=False), Dense(32, 8)]
    model = SentenceTransformer(modules=modules, device="cpu", prompts=PROMPTS, default_prompt_name="default")
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, **OPTIONS) as engine:
        yield engine


def assert_equal(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-4, atol=1e-5)


def test_prompts_are_those_of_encode_encode_query_and_encode_document(engine: Engine, library: Any) -> None:
    assert_equal(engine.embed(TEXTS), library.encode(TEXTS))
    assert_equal(engine.embed(TEXTS, prompt_name="query"), library.encode_query(TEXTS))
    assert_equal(engine.embed(TEXTS, prompt_name="document"), library.encode_document(TEXTS))
    assert_equal(engine.embed(TEXTS, prompt_name="passage"), library.encode(TEXTS, prompt_name="passage"))
    assert_equal(engine.embed(TEXTS, prompt="own words: "), library.encode(TEXTS, prompt="own words: "))
    assert_equal(engine.embed(TEXTS[1], prompt=""), library.encode(TEXTS[1], prompt=""))
    assert_equal(list(engine.embed_stream(TEXTS, prompt_name="query")), library.encode_query(TEXTS))
    plain, query = library.encode(TEXTS, prompt=""), library.encode_query(TEXTS)
    assert np.abs(plain - query).max() > 0.01


def test_an_unknown_prompt_is_an_error_of_the_caller(engine: Engine) -> None:
    with pytest.raises(UsageError, match="the prompts of this model are 'default', 'document', 'passage', 'query'"):
        engine.embed(TEXTS, prompt_name="corpus")
    with pytest.raises(UsageError, match="the prompts of this model are"):
        engine.embed_stream(TEXTS, prompt_name="corpus")


def test_info_has_the_prompts(engine: Engine) -> None:
    model = engine.info()["model"]

    assert (model["prompts"], model["default_prompt"], model["width"]) == ({"document": "", **PROMPTS}, "about: ", 8)


def test_an_async_engine_takes_the_same_prompts(folder: Path, library: Any) -> None:
    async def main() -> None:
        async with AsyncEngine(folder, **OPTIONS) as engine:
            assert_equal(await engine.embed(TEXTS), library.encode(TEXTS))
            assert_equal(await engine.embed(TEXTS[1], prompt_name="query"), library.encode_query(TEXTS[1]))
            streamed = [vector async for vector in engine.embed_stream(TEXTS, prompt="own words: ")]
            assert_equal(streamed, library.encode(TEXTS, prompt="own words: "))
            with pytest.raises(UsageError, match="the prompts of this model are"):
                await engine.embed(TEXTS, prompt_name="corpus")

    asyncio.run(main())


def test_static_embeddings_are_planned_warmed_up_and_served(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_folder(verify=False) / "tokenizer.json"))
    tokenizer.no_truncation()
    library = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16), Normalize()], device="cpu")
    library.save(str(tmp_path), create_model_card=False)

    with Engine(tmp_path, **OPTIONS) as engine:
        assert_equal(engine.embed(TEXTS), library.encode(TEXTS))
        with pytest.raises(RequestError, match=r"'texts\[1\]' has no tokens for this model"):
            engine.embed(["a", "  "])
        info = engine.info()

    assert info["model"]["architecture"] == "StaticEmbedding"
    assert info["instances"][0]["cost"]
