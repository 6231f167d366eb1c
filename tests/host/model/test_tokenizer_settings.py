"""A tokenizer.json that transformers would not use as it is, because of its class or tokenizer_config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.errors import UsageError
from launcher.host.model.resolve import demo_folder, resolve
from launcher.host.model.tokenizer_settings import TokenizerParts, rebuilt_part
from launcher.options import ModelOptions
from tests.host.model.test_resolve import BERT, TOKENIZER, TOKENIZER_CONFIG, write_json

NORMALIZER: dict[str, Any] = TOKENIZER["normalizer"]
ROBERTA = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True},
    "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]},
}
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding")


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


def rebuilt(config: dict[str, Any], tokenizer: dict[str, Any], settings: dict[str, Any]) -> str | None:
    file = {**TOKENIZER, **tokenizer}
    parts = TokenizerParts(*(file.get(name) for name in PARTS))
    return rebuilt_part(parts, {**TOKENIZER_CONFIG, **settings}, {**BERT, **config})


@pytest.mark.parametrize(
    ("tokenizer", "settings", "part"),
    [
        ({}, {"do_lower_case": False}, "do_lower_case"),
        ({"normalizer": {**NORMALIZER, "lowercase": False}}, {}, "do_lower_case"),
        ({}, {"strip_accents": False}, "strip_accents"),
        ({"normalizer": {**NORMALIZER, "strip_accents": False}}, {}, "strip_accents"),
        ({}, {"tokenize_chinese_chars": False}, "tokenize_chinese_chars"),
        ({"normalizer": None}, {}, "normalizer"),
        ({"normalizer": {**NORMALIZER, "clean_text": False}}, {}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, {}, "pre_tokenizer"),
        ({"post_processor": None}, {}, "post_processor"),
        ({}, {"cls_token": "<s>"}, "post_processor"),
        ({}, {"tokenizer_class": "AlbertTokenizerFast"}, "the class AlbertTokenizer"),
        ({}, {"auto_map": {"AutoTokenizer": ["x.Slow", None]}}, "the model's own tokenizer class"),
    ],
)
def test_a_contradiction_between_the_two_files_is_found(tokenizer, settings, part) -> None:
    assert rebuilt({}, tokenizer, settings) == part


@pytest.mark.parametrize(
    ("config", "tokenizer", "settings"),
    [
        ({}, {}, {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizerFast"}),
        ({}, {"normalizer": {**NORMALIZER, "lowercase": False}}, {"do_lower_case": False}),
        ({}, {"normalizer": {**NORMALIZER, "strip_accents": True}}, {}),
        ({}, {"normalizer": None}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
        ({"model_type": "roberta"}, ROBERTA, {"add_prefix_space": True}),
        ({"model_type": "modernbert"}, {"normalizer": None}, {}),
    ],
)
def test_files_that_agree_are_used_as_they_are(config, tokenizer, settings) -> None:
    assert rebuilt(config, tokenizer, settings) is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "add_prefix_space"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"normalizer": NORMALIZER}, "normalizer"),
        ({"post_processor": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "post_processor"),
    ],
)
def test_the_parts_of_a_roberta_are_compared(changes, part) -> None:
    assert rebuilt({"model_type": "roberta"}, {**ROBERTA, **changes}, {}) == part


@pytest.mark.parametrize(
    ("tokenizer", "settings", "words"),
    [
        ({}, {"truncation_side": "left"}, "tokenizer_config.json sets truncation_side to 'left'"),
        ({"truncation": {"direction": "Left"}}, {}, "tokenizer.json sets truncation_side to 'Left'"),
        ({}, {"padding_side": "left"}, "tokenizer_config.json sets padding_side to 'left'"),
        ({"padding": {"direction": "Left"}}, {}, "tokenizer.json sets padding_side to 'Left'"),
    ],
)
def test_truncation_and_padding_on_the_left_are_refused(tmp_path, tokenizer, settings, words) -> None:
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings=settings)

    assert words in refusal(folder)


def test_the_side_in_tokenizer_config_comes_first(tmp_path) -> None:
    tokenizer = {"truncation": {"direction": "Left"}}
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings={"truncation_side": "right"})

    assert resolve(ModelOptions(model=str(folder))).task == "embed"


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
# A Metaspace without the WhitespaceSplit that XLMRobertaTokenizer puts before it.
UNIGRAM = {
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "post_processor": None,
    "decoder": None,
    "added_tokens": [],
    "model": {
        "type": "Unigram",
        "unk_id": 3,
        "vocab": [[text, -5.0] for text in ("<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "c", "x", "A", "L")],
    },
}
XLM_ROBERTA = {"tokenizer_class": "XLMRobertaTokenizer", "unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>",
               "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "cased": ({}, {"do_lower_case": False}),
    "accents": ({}, {"strip_accents": False}),
    "no special tokens": ({"post_processor": None}, {}),
    "no normalizer, used as it is": ({"normalizer": None}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "cased, used as it is": ({}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}),
    "xlm-roberta": (UNIGRAM, XLM_ROBERTA),
}
COMPARE = """
import json, sys
from tokenizers import Tokenizer
from transformers import AutoTokenizer
pairs, texts = json.load(sys.stdin)
for folder, path in pairs:
    front = Tokenizer.from_file(path)
    front.no_truncation()
    front.no_padding()
    library = AutoTokenizer.from_pretrained(folder)
    print(int([front.encode(text).ids for text in texts] == [library(text)["input_ids"] for text in texts]))
"""


@pytest.mark.slow
def test_the_token_ids_are_those_of_transformers_whatever_the_two_files_say(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    demo, paths, converted = demo_folder(verify=False), {}, []
    original = json.loads((demo / "tokenizer.json").read_text())
    settings = json.loads((demo / "tokenizer_config.json").read_text())
    for name, (tokenizer, changes) in CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((demo / "config.json").read_text())
        write_json(folder / "config.json", {**config, "vocab_size": 12} if tokenizer is UNIGRAM else config)
        (folder / "model.safetensors").symlink_to(demo / "model.safetensors")
        write_json(folder / "tokenizer.json", {**original, **tokenizer})
        write_json(folder / "tokenizer_config.json", {**settings, **changes})
        model_info = resolve(ModelOptions(model=str(folder)))
        paths[name] = model_info.tokenizer_path
        if any("transformers does not use tokenizer.json as it is" in note for note in model_info.notes):
            converted.append(name)
    asked = json.dumps([[(str(tmp_path / name), path) for name, path in paths.items()], TEXTS])

    made = subprocess.run([sys.executable, "-c", COMPARE], input=asked, capture_output=True, text=True, check=True)

    equal = dict(zip(CASES, made.stdout.split(), strict=True))
    assert equal == dict.fromkeys(CASES, "1")
    as_they_are = {"plain", "no normalizer, used as it is", "cased, used as it is"}
    assert set(converted) == set(CASES) - as_they_are
