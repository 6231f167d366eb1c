"""The rule that a tokenizer.json is used as it is: transformers builds the same tokenizer, whatever the other files
say. The files are changed in many ways, and the rule is compared with the library for each."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from launcher.errors import UsageError
from launcher.host.model.tokenizer_files import TokenizerRequest, locate, read_parts
from launcher.host.model.tokenizer_settings import ALIASES, CLASS_OF_TYPE
from launcher.host.model.tokenizer_settings import difference as difference_of_files
from tests.tokenizing.kinds import byte_level

pytestmark = pytest.mark.slow

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<pad>", "<mask>", "<unk>",
          *"abcdefghäéIN中1.,'!", *("##" + c for c in "abcdefghäéin1"), "the", "The", "##ing", "fi"]  # fmt: skip


def wordpiece(post_processor: Any, special: list[str]) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = post_processor
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    made["normalizer"] = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    return made


def roberta() -> dict[str, Any]:
    tokenizer = byte_level(300)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    return made


BERT = wordpiece(processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), PIECES[:5])
MPNET = wordpiece(
    processors.RobertaProcessing(("</s>", 6), ("<s>", 5), True, False),
    ["<s>", "</s>", "<pad>", "<mask>", "[UNK]"],
)
ORIGINALS = {
    "bert": BERT,
    "distilbert": BERT,
    "electra": BERT,
    "mpnet": MPNET,
    "roberta": roberta(),
    "modernbert": BERT,
    "eurobert": roberta(),
    "qwen3": roberta(),
}
CHANGES: list[tuple[str, Any]] = [
    *((f"normalizer.{key}", value) for key in ("lowercase", "strip_accents", "handle_chinese_chars", "clean_text")
      for value in (True, False)),
    ("normalizer", None), ("normalizer", {"type": "NFC"}),
    ("pre_tokenizer", {"type": "Whitespace"}), ("pre_tokenizer", {"type": "BertPreTokenizer"}),
    ("pre_tokenizer.add_prefix_space", True), ("pre_tokenizer.use_regex", False),
    ("post_processor", None), ("post_processor.trim_offsets", False), ("post_processor.add_prefix_space", True),
    ("post_processor.cls", ["[MASK]", 4]), ("post_processor.sep", ["[SEP]", 4]),
    ("post_processor", {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}},
    }),
    ("model.max_input_chars_per_word", 120), ("model.continuing_subword_prefix", "#"),
    ("model.unk_token", "[MASK]"), ("model.unk_token", "<unk>"), ("model.fuse_unk", True),
    ("model.ignore_merges", True), ("model.byte_fallback", True), ("model.end_of_word_suffix", "</w>"),
    *((f"added_tokens.{place}.{flag}", value) for place in (0, 2, 4)
      for flag in ("lstrip", "rstrip", "single_word", "normalized", "special") for value in (True, False)),
    ("added_tokens.4", None), ("added_tokens.0", None),
    ("added_tokens.+", ("new", False)), ("added_tokens.+", ("the", True)), ("added_tokens.+", ("É", False)),
    ("truncation", {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}),
    ("padding", {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"}),
]  # fmt: skip
AN_ADDED_TOKEN = {"content": "the", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
SETTINGS: list[tuple[str, Any]] = [
    *((key, value) for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
                               "trim_offsets", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token",
                               "do_basic_tokenize") for value in (True, False)),
    ("strip_accents", None), ("max_len", 17), ("model_max_length", 11), ("never_split", ["the"]),
    ("tokenizer_class", "PreTrainedTokenizerFast"), ("tokenizer_class", "BertTokenizer"),
    ("tokenizer_class", "RobertaTokenizerFast"), ("tokenizer_class", "DistilBertTokenizerFast"),
    ("tokenizer_class", "ElectraTokenizer"), ("tokenizer_class", "TokenizersBackend"),
    ("unk_token", "[MASK]"), ("cls_token", "[MASK]"), ("sep_token", "</s>"), ("mask_token", "the"),
    ("pad_token", "<pad>"), ("pad_token", None), ("mask_token", "brand-new"), ("own_token", "the"),
    ("mask_token", {"__type": "AddedToken", "special": True, **AN_ADDED_TOKEN}),
    ("cls_token", {"__type": "AddedToken", "special": True, **AN_ADDED_TOKEN, "content": "[CLS]"}),
    ("extra_special_tokens", ["the"]), ("additional_special_tokens", ["[MASK]", "fresh"]),
    ("extra_special_tokens", {"own_token": "the"}), ("wordpieces_prefix", "##"), ("errors", "ignore"),
    ("model_input_names", ["input_ids", "attention_mask"]), ("unheard_of", 1),
    ("added_tokens_decoder", {"3": {**AN_ADDED_TOKEN, "content": "[SEP]"}}),
    ("added_tokens_decoder", {"40": {**AN_ADDED_TOKEN, "special": True}}),
]  # fmt: skip
SPECIAL_TOKENS_MAPS: list[dict[str, Any]] = [
    {"cls_token": "[CLS]", "sep_token": "[SEP]"},
    {"cls_token": "[MASK]"},
    {"mask_token": AN_ADDED_TOKEN},
    {"mask_token": {**AN_ADDED_TOKEN, "content": "<mask>"}},
    {"additional_special_tokens": ["the"]},
    {"do_lower_case": False},
]
ADDED: list[dict[str, int]] = [{"the": 40}, {"[MASK]": 4}, {"[MASK]": 5}, {"fresh": 90}]


def changed(original: dict[str, Any], changes: list[tuple[str, Any]]) -> dict[str, Any]:
    file = copy.deepcopy(original)
    for path, value in changes:
        *outer, last = path.split(".")
        if path.startswith("added_tokens."):
            tokens = file["added_tokens"]
            if outer[-1].isdigit() and int(outer[-1]) < len(tokens):
                tokens[int(outer[-1])][last] = value
            elif last == "+":
                known = file["model"]["vocab"].get(value[0])
                largest = max([len(file["model"]["vocab"]) - 1, *(token["id"] for token in tokens)])
                new = {"id": largest + 1 if known is None else known, "content": value[0], "special": value[1]}
                flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not value[1]}
                tokens[:] = [t for t in tokens if t["content"] != value[0]] + [{**flags, **new}]
            elif last.isdigit():
                del tokens[int(last) : int(last) + 1]
        elif not outer:
            file[last] = value
        elif path == "model.continuing_subword_prefix" and "merges" in file["model"]:
            continue  # the Rust library aborts the process if the merges do not have it
        elif isinstance(file[outer[0]], dict) and last in file[outer[0]]:
            file[outer[0]][last] = value
    return file


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(list(ORIGINALS)),
    changes=st.lists(st.sampled_from(CHANGES), max_size=2),
    stated=st.lists(st.sampled_from(SETTINGS), max_size=2),
    special=st.sampled_from([None, None, None, *SPECIAL_TOKENS_MAPS]),
    added=st.sampled_from([None, None, None, *ADDED]),
)
def test_a_file_that_is_used_as_it_is_gives_the_ids_of_transformers(kind, changes, stated, special, added) -> None:
    from transformers import AutoTokenizer

    from launcher.worker.compare_tokenizers import difference

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = changed(ORIGINALS[kind], changes)
        config = {"model_type": kind, "vocab_size": 400}
        for path, value in (
            ("config.json", config),
            ("tokenizer.json", file),
            ("tokenizer_config.json", dict(stated)),
            ("special_tokens_map.json", special),
            ("added_tokens.json", added),
        ):
            if value is not None:
                (folder / path).write_text(json.dumps(value))
        if difference_of_files(read_parts(folder / "tokenizer.json", folder, UsageError), config) is not None:
            return  # it is converted
        try:
            facts = locate(folder, config, TokenizerRequest(), UsageError)
        except UsageError:
            return
        library = AutoTokenizer.from_pretrained(name)

        assert difference(library, facts.path) is None
        assert facts.pad_id == library.pad_token_id
        assert facts.segment_ids == ("token_type_ids" in library.model_input_names)
        limit = library.model_max_length
        assert facts.max_length == (int(limit) if limit < 10**20 else None)
        assert facts.largest_id == max(library.get_vocab().values())


def test_the_classes_of_model_types_are_those_of_transformers() -> None:
    from transformers.models.auto.tokenization_auto import (
        MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
        TOKENIZER_MAPPING_NAMES,
    )

    found = {kind: TOKENIZER_MAPPING_NAMES.get(kind, "") for kind in CLASS_OF_TYPE}

    assert {kind: ALIASES.get(name or "", name) for kind, name in found.items()} == CLASS_OF_TYPE
    # Of these, transformers ignores the class that the files name.
    ignored = CLASS_OF_TYPE.keys() & MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {CLASS_OF_TYPE[kind] for kind in ignored} == {"TokenizersBackend"}
