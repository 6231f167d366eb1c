"""The settings of a tokenizer in sentence_bert_config.json have the effect that they have in sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.front.ascii_fast_path import Encoder
from launcher.host.model.resolve import demo_folder, resolve
from launcher.options import ModelOptions

pytestmark = pytest.mark.slow

TEXTS = ["ALL CAPS and Naïve CAFÉ", "中文 x", "İstanbul STRASSE ẞ", "a [MASK] b [mask]", "plain text"]
CASED: dict[str, Any] = {"tokenizer_args": {"do_lower_case": False}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "model"
    shutil.copytree(demo_folder(verify=False), place)
    return place


@pytest.mark.parametrize(
    ("stated", "changes"),
    [
        (CASED, True),
        ({"processor_kwargs": {"strip_accents": False, "tokenize_chinese_chars": False}}, True),
        ({**CASED, "do_lower_case": True}, True),
        ({"do_lower_case": True}, False),
        ({"tokenizer_args": {"cls_token": "[MASK]"}}, True),
        ({"tokenizer_args": {}, "processor_kwargs": {"do_lower_case": False}}, False),
    ],
)
def test_arguments_of_the_tokenizer_are_applied(folder: Path, stated: dict[str, Any], changes: bool) -> None:
    from sentence_transformers import SentenceTransformer

    plain = Encoder(resolve(ModelOptions(model=str(folder))), offsets=False)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 30, **stated}))

    found = Encoder(resolve(ModelOptions(model=str(folder))), offsets=False).encode(TEXTS)

    expected = SentenceTransformer(str(folder), device="cpu").tokenizer(TEXTS)["input_ids"]
    ids = [encoding.ids for encoding in found]
    assert ids == expected
    assert (ids != [encoding.ids for encoding in plain.encode(TEXTS)]) == changes
