"""A tokenizer with a token for images, of which a model of texts has no embedding, as those of Gemma 3."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RequestError, UsageError
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from tests.models import families, references, vocabularies
from tests.models.compare import Served, relative_error
from tests.models.texts import TEXTS

IMAGE = "<image_soft_token>"
BOUND = 1e-5


def tokenizer_with(token: str) -> Any:
    made = vocabularies.decoder()
    made.add_special_tokens({"extra_special_tokens": [token]})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder whose tokenizer has one token more than the model has rows, named by ``image_token``."""
    folder = tmp_path_factory.mktemp("media") / "gemma"
    rows = len(vocabularies.decoder())
    families.save_embedder(
        folder, family="gemma3_text", tokenizer=partial(tokenizer_with, IMAGE), pooling="mean", vocab_size=rows,
        use_bidirectional_attention=True,
    )  # fmt: skip
    path = next(folder.rglob("tokenizer_config.json"))
    settings = json.loads(path.read_text())
    settings.pop("extra_special_tokens", None)
    path.write_text(json.dumps({**settings, "image_token": IMAGE}))
    return folder


def tokenize(folder: Path, texts: Sequence[str]) -> None:
    tokenizer = FrontTokenizer(resolve(ModelOptions(model=str(folder))), text_characters=1000)
    try:
        asyncio.run(tokenizer.texts(texts))
    finally:
        tokenizer.close()


@pytest.mark.slow
def test_a_model_without_an_embedding_of_the_image_token_is_served(folder: Path) -> None:
    model_info = resolve(ModelOptions(model=str(folder)))
    assert model_info.tokens_without_rows == {IMAGE: model_info.vocab_size}

    expected = references.embed(folder, TEXTS)
    with Served(folder, {}) as served:
        for results in served.results_by_batching(TEXTS).values():
            assert relative_error(expected, results) <= BOUND


@pytest.mark.slow
def test_a_text_with_the_image_token_is_refused(folder: Path) -> None:
    tokenize(folder, ["a plain text", "another one"])
    with pytest.raises(
        RequestError, match=rf"'input\[1\]' contains '{IMAGE}', a token of which the model has no"
    ) as caught:
        tokenize(folder, ["a plain text", f"a text with {IMAGE} in it"])
    assert caught.value.status == 400


@pytest.mark.slow
def test_another_token_without_an_embedding_is_a_refusal_of_the_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = next(copy.rglob("tokenizer_config.json"))
    settings = json.loads(path.read_text())
    del settings["image_token"]
    path.write_text(json.dumps(settings))
    rows = len(vocabularies.decoder())

    with pytest.raises(UsageError, match=rf"token ids up to {rows}, but config\.json has a vocab_size of {rows}"):
        resolve(ModelOptions(model=str(copy)))
