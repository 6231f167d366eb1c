"""A tokenizer.json that transformers would not use as it is, because of its class or tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.host.model.tokenizer_settings import TokenizerParts, difference
from launcher.options import ModelOptions
from tests.host.model.test_resolve import BERT, TOKENIZER, TOKENIZER_CONFIG, write_json

NORMALIZER: dict[str, Any] = TOKENIZER["normalizer"]
ADDED: list[dict[str, Any]] = TOKENIZER["added_tokens"]
DECODER = {str(token["id"]): {"content": token["content"], "special": True} for token in ADDED}
ROBERTA = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True},
    "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]},
    "added_tokens": [
        {"id": id, "content": token, "special": True}
        for id, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    ],
    "model": {"type": "BPE", "vocab": {}},
}
ROBERTA_CONFIG: dict[str, Any] = {"pad_token": "<pad>"}
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


def found(
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    settings: dict[str, Any],
    *,
    special_tokens_map: dict[str, Any] | None = None,
    added_tokens: dict[str, int] | None = None,
) -> str | None:
    file = {**TOKENIZER, **tokenizer}
    parts = TokenizerParts(
        *(file.get(name) for name in PARTS),
        model=file["model"],
        vocabulary=file["model"]["vocab"],
        added_tokens=tuple(file["added_tokens"]),
        tokenizer_config={**TOKENIZER_CONFIG, **settings},
        special_tokens_map=special_tokens_map,
        more_added_tokens=added_tokens,
    )
    return difference(parts, {**BERT, **config})


def model(**changes: Any) -> dict[str, Any]:
    return {"model": {**TOKENIZER["model"], **changes}}


def added(**changes: Any) -> dict[str, Any]:
    """The added tokens, with changes to the last."""
    return {"added_tokens": [*ADDED[:-1], {**ADDED[-1], **changes}]}


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
        ({}, {"cls_token": "[MASK]"}, "post_processor"),
        (model(max_input_chars_per_word=200), {}, "model"),
        (model(continuing_subword_prefix="@@"), {}, "model"),
        (model(unk_token="[PAD]"), {}, "model"),
        (added(special=False), {}, "mask_token"),
        (added(content="[MSK]"), {}, "mask_token"),
        (added(id=40), {}, "the id of [MASK]"),
        ({}, {"unk_token": None}, "unk_token"),
        ({}, {"mask_token": {"content": "[MASK]"}}, "mask_token"),
        ({}, {"own_token": "[OWN]"}, "own_token"),
        ({}, {"additional_special_tokens": ["[OWN]"]}, "additional_special_tokens"),
        ({}, {"extra_special_tokens": {"own": "[OWN]"}}, "extra_special_tokens"),
        ({}, {"added_tokens_decoder": {**DECODER, "4": {"content": "[MASK]", "lstrip": True}}}, "added_tokens_decoder"),
        ({}, {"added_tokens_decoder": {}}, "added_tokens_decoder"),
        ({}, {"processor_class": "CLIPProcessor"}, "processor_class"),
        ({}, {"tokenizer_class": "AlbertTokenizerFast"}, "the class AlbertTokenizerFast"),
        ({}, {"auto_map": {"AutoTokenizer": ["x.Slow", None]}}, "the class for the model type bert"),
    ],
)
def test_a_contradiction_between_the_files_is_found(tokenizer, settings, part) -> None:
    assert found({}, tokenizer, settings) == part


@pytest.mark.parametrize(
    ("special_tokens_map", "added_tokens", "part"),
    [
        ({"cls_token": "[SEP]"}, None, "post_processor"),
        ({"mask_token": {"content": "[M]", "lstrip": True}}, None, "mask_token"),
        ({"model_max_length": 5}, None, "model_max_length"),
        (None, {"[OWN]": 5}, "added_tokens.json"),
        (None, {"[MASK]": 5}, "added_tokens.json"),
    ],
)
def test_the_older_files_count_unless_tokenizer_config_has_the_added_tokens(
    special_tokens_map, added_tokens, part
) -> None:
    files = {"special_tokens_map": special_tokens_map, "added_tokens": added_tokens}

    assert found({}, {}, {}, **files) == part
    assert found({}, {}, {"added_tokens_decoder": DECODER}, **files) is None


@pytest.mark.parametrize(
    ("config", "tokenizer", "settings"),
    [
        ({}, {}, {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizerFast"}),
        ({}, {"normalizer": {**NORMALIZER, "lowercase": False}}, {"do_lower_case": False}),
        ({}, {"normalizer": {**NORMALIZER, "strip_accents": True}}, {}),
        ({}, {"normalizer": None}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
        ({"model_type": "roberta"}, ROBERTA, {**ROBERTA_CONFIG, "add_prefix_space": True}),
        ({"model_type": "modernbert"}, {"normalizer": None}, {}),
        ({"model_type": "electra"}, {}, {"tokenizer_class": "ElectraTokenizer"}),
    ],
)
def test_files_that_agree_are_used_as_they_are(config, tokenizer, settings) -> None:
    assert found(config, tokenizer, settings) is None


def test_a_model_type_of_another_class_is_converted() -> None:
    assert found({"model_type": "albert"}, {}, {}) == "the class for the model type albert"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "add_prefix_space"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"normalizer": NORMALIZER}, "normalizer"),
        ({"model": {"type": "BPE", "vocab": {}, "fuse_unk": True}}, "model"),
        ({"post_processor": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "post_processor"),
    ],
)
def test_the_parts_of_a_roberta_are_compared(changes, part) -> None:
    assert found({"model_type": "roberta"}, {**ROBERTA, **changes}, ROBERTA_CONFIG) == part


def test_segment_ids_of_a_single_text_that_the_model_lacks_are_refused(tmp_path) -> None:
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = save(tmp_path, config={}, tokenizer={"post_processor": processor}, settings=settings)
    assert resolve(ModelOptions(model=str(folder))).task == "embed"  # the class does not return them

    save(
        tmp_path,
        config={"type_vocab_size": 1},
        tokenizer={"post_processor": processor},
        settings={**settings, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    )
    assert "gives tokens of a single text the token type 1, but the model has 1" in refusal(tmp_path)


def test_splitting_special_tokens_is_refused(tmp_path) -> None:
    folder = save(tmp_path, config={}, tokenizer={}, settings={"split_special_tokens": True})

    assert "tokenizer_config.json sets split_special_tokens to true" in refusal(folder)


@pytest.mark.parametrize(
    ("tokenizer", "settings", "words"),
    [
        ({}, {"truncation_side": "left"}, "tokenizer_config.json sets truncation_side to 'left'"),
        ({"truncation": {"direction": "Left"}}, {}, "tokenizer.json sets truncation_side to 'left'"),
        ({}, {"padding_side": "left"}, "tokenizer_config.json sets padding_side to 'left'"),
        ({"padding": {"direction": "Left"}}, {}, "tokenizer.json sets padding_side to 'left'"),
    ],
)
def test_truncation_and_padding_on_the_left_are_refused(tmp_path, tokenizer, settings, words) -> None:
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings=settings)

    assert words in refusal(folder)


def test_padding_on_the_left_is_accepted_if_results_do_not_depend_on_it(tmp_path) -> None:
    config = {"model_type": "modernbert"}
    folder = save(tmp_path, config=config, tokenizer={}, settings={"padding_side": "left"})

    assert resolve(ModelOptions(model=str(folder))).task == "embed"


def test_the_side_in_tokenizer_config_comes_first(tmp_path) -> None:
    tokenizer = {"truncation": {"direction": "Left"}}
    folder = save(tmp_path, config={}, tokenizer=tokenizer, settings={"truncation_side": "right"})

    assert resolve(ModelOptions(model=str(folder))).task == "embed"


@pytest.mark.parametrize(
    "tokenizer",
    [
        model(vocab={**TOKENIZER["model"]["vocab"], "b": 50}),
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]] * 51}},
        {
            **model(vocab={**TOKENIZER["model"]["vocab"], **{f"word{id}": id for id in range(5, 50)}}),
            "added_tokens": [*ADDED, {"id": 50, "content": "<ENT>"}],
        },
        {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 50]}},
    ],
)
def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused_with_both_numbers(tmp_path, tokenizer) -> None:
    folder = save(tmp_path, config={"model_type": "modernbert"}, tokenizer=tokenizer, settings={})

    message = refusal(folder)

    assert "tokenizer.json has token ids up to 50" in message
    assert "config.json has a vocab_size of 50" in message
