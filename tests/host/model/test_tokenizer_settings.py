"""A tokenizer.json that transformers would not use as it is, because of tokenizer_config.json, is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.errors import UsageError
from launcher.host.model.resolve import demo_folder, resolve
from launcher.options import ModelOptions
from tests.host.model.test_resolve import BERT, TOKENIZER, TOKENIZER_CONFIG, write_json

NORMALIZER: dict[str, Any] = TOKENIZER["normalizer"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True}


def save(folder: Path, *, config: dict[str, Any], tokenizer: dict[str, Any], settings: dict[str, Any]) -> Path:
    write_json(folder / "config.json", {**BERT, **config})
    write_json(folder / "tokenizer.json", {**TOKENIZER, **tokenizer})
    write_json(folder / "tokenizer_config.json", {**TOKENIZER_CONFIG, **settings})
    save_file({"a": np.zeros((50, 8), np.float32)}, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(ModelOptions(model=str(folder)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("tokenizer", "settings", "words"),
    [
        ({}, {"do_lower_case": False}, "sets do_lower_case False, but lowercase of the normalizer in tokenizer.json"),
        ({"normalizer": {**NORMALIZER, "lowercase": False}}, {}, "means, by default, do_lower_case True"),
        ({}, {"strip_accents": False}, "sets strip_accents False"),
        ({"normalizer": {**NORMALIZER, "strip_accents": False}}, {}, "means, by default, strip_accents True"),
        ({}, {"tokenize_chinese_chars": False}, "sets tokenize_chinese_chars False"),
        ({"normalizer": None}, {}, "has the normalizer nothing, but BertTokenizer uses BertNormalizer"),
        ({"normalizer": {**NORMALIZER, "clean_text": False}}, {}, "sets clean_text to false"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, {}, "has the pre_tokenizer Whitespace"),
        ({"post_processor": None}, {}, "adds nothing, or other tokens, around a text (post_processor)"),
        ({}, {"cls_token": "<s>"}, "adds [CLS] and [SEP] around a text (post_processor), but BertTokenizer adds <s>"),
        ({}, {"truncation_side": "left"}, "tokenizer_config.json sets truncation_side to 'left'"),
        ({"truncation": {"direction": "Left"}}, {}, "tokenizer.json sets truncation_side to 'Left'"),
        ({}, {"padding_side": "left"}, "tokenizer_config.json sets padding_side to 'left'"),
        ({"padding": {"direction": "Left"}}, {}, "tokenizer.json sets padding_side to 'Left'"),
    ],
)
def test_a_contradiction_between_the_two_files_is_refused(tmp_path, tokenizer, settings, words) -> None:
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings=settings)

    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("config", "tokenizer", "settings"),
    [
        ({}, {}, {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizerFast"}),
        ({}, {"normalizer": {**NORMALIZER, "lowercase": False}}, {"do_lower_case": False}),
        ({}, {"normalizer": {**NORMALIZER, "strip_accents": True}}, {}),
        ({}, {"truncation": {"direction": "Left"}}, {"truncation_side": "right"}),
        ({}, {"normalizer": None}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
        ({"model_type": "roberta"}, {"pre_tokenizer": BYTE_LEVEL}, {"add_prefix_space": True}),
    ],
)
def test_files_that_agree_are_accepted(tmp_path, config, tokenizer, settings) -> None:
    folder = save(tmp_path, config=config, tokenizer=tokenizer, settings=settings)

    assert resolve(ModelOptions(model=str(folder))).task == "embed"


@pytest.mark.parametrize("pre_tokenizer", [BYTE_LEVEL, None])
def test_another_prefix_space_of_a_roberta_is_refused(tmp_path, pre_tokenizer) -> None:
    folder = save(tmp_path, config={"model_type": "roberta"}, tokenizer={"pre_tokenizer": pre_tokenizer}, settings={})

    assert "tokenizer_config.json means, by default, add_prefix_space False" in refusal(folder)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 50}}},
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]] * 51}},
        {"added_tokens": [{"id": 50, "content": "<ENT>"}]},
    ],
)
def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused_with_both_numbers(tmp_path, tokenizer) -> None:
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings={})

    message = refusal(folder)

    assert "tokenizer.json has token ids up to 50" in message
    assert "config.json has a vocab_size of 50" in message


# --- the same decisions as transformers, on a real tokenizer

TEXTS = ("ALL CAPS", "naïve Café Ünï", "日本 x", "a [MASK] b [SEP]", "a  b\t\n\u200b c", "don't.stop", "<s> x </s>")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "cased": ({}, {"do_lower_case": False}),
    "accents": ({}, {"strip_accents": False}),
    "chinese": ({}, {"tokenize_chinese_chars": False}),
    "no special tokens": ({"post_processor": None}, {}),
    "other pre-tokenizer": ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, {}),
    "no normalizer": ({"normalizer": None}, {}),
    "no normalizer, used as it is": ({"normalizer": None}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "cased, used as it is": ({}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}),
    "electra": ({}, {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False}),
    "distilbert": ({}, {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}),
}
COMPARE = """
import json, sys
from tokenizers import Tokenizer
from transformers import AutoTokenizer
folders, texts = json.load(sys.stdin)
for folder in folders:
    front = Tokenizer.from_file(folder + "/tokenizer.json")
    front.no_truncation()
    front.no_padding()
    library = AutoTokenizer.from_pretrained(folder)
    print(int([front.encode(text).ids for text in texts] == [library(text)["input_ids"] for text in texts]))
"""


@pytest.mark.slow
def test_a_folder_is_accepted_if_and_only_if_transformers_gives_the_same_token_ids(tmp_path) -> None:
    demo, accepted = demo_folder(verify=False), []
    original = json.loads((demo / "tokenizer.json").read_text())
    settings = json.loads((demo / "tokenizer_config.json").read_text())
    for name, (tokenizer, changes) in CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(demo / "config.json", folder)
        (folder / "model.safetensors").symlink_to(demo / "model.safetensors")
        write_json(folder / "tokenizer.json", {**original, **tokenizer})
        write_json(folder / "tokenizer_config.json", {**settings, **changes})
        try:
            accepted.append(bool(resolve(ModelOptions(model=str(folder)))))
        except UsageError:
            accepted.append(False)
    asked = json.dumps([[str(tmp_path / name) for name in CASES], TEXTS])

    made = subprocess.run([sys.executable, "-c", COMPARE], input=asked, capture_output=True, text=True, check=True)

    equal = [line == "1" for line in made.stdout.split()]
    assert dict(zip(CASES, accepted, strict=True)) == dict(zip(CASES, equal, strict=True))
    assert any(equal)
    assert not all(equal)
