"""Compares ``tokenizer_config.json`` with ``tokenizer.json``, which the front uses alone.

Separate from ``tokenizer_files``, which finds the files. transformers 5 rebuilds parts of some tokenizers from their
class and ``tokenizer_config.json``, and ignores these parts of ``tokenizer.json``. Where they differ, the front
would compute other token ids than transformers, so the model is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UsageError

Json = Mapping[str, Any]

# Classes that rebuild a BertNormalizer, a BertPreTokenizer and the special tokens around a text
# (transformers/models/bert/tokenization_bert.py and mpnet/tokenization_mpnet.py).
BERT_CLASSES = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"})
# Classes that rebuild a ByteLevel pre-tokenizer (transformers/models/roberta/tokenization_roberta.py).
ROBERTA_CLASSES = frozenset({"RobertaTokenizer"})
# The class that transformers 5 uses if neither file names one (TOKENIZER_MAPPING_NAMES).
CLASS_OF_TYPE: Mapping[str, str] = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "megatron-bert": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "squeezebert": "BertTokenizer",
}
SPECIAL_TOKENS: Mapping[str, tuple[str, str]] = {"MPNetTokenizer": ("<s>", "</s>")}  # of the others: [CLS] and [SEP]

WAY_OUT = "transformers follows tokenizer_config.json; make the two files agree in a copy of the folder"


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """The parts of a tokenizer.json that are compared, each as its JSON object; ``None``: it has no such part."""

    normalizer: Json | None
    pre_tokenizer: Json | None
    post_processor: Json | None
    truncation: Json | None
    padding: Json | None


def check_sides(folder: Path, parts: TokenizerParts, settings: Json, refuse: Callable[[str], UsageError]) -> None:
    """Raise ``UsageError`` if texts are truncated or padded on the left. Without a setting, tokenizer.json decides."""
    for key, part in (("truncation_side", parts.truncation), ("padding_side", parts.padding)):
        name, side = "tokenizer_config.json", settings.get(key)
        if side is None and part is not None:
            name, side = "tokenizer.json", part.get("direction")
        if side is not None and str(side).lower() != "right":
            raise refuse(f"{folder / name} sets {key} to {side!r}, which is not supported; it must be 'right'")


def check_settings(
    folder: Path, parts: TokenizerParts, settings: Json, config: Json, refuse: Callable[[str], UsageError]
) -> None:
    """Raise ``UsageError`` if transformers would rebuild a part of the tokenizer in ``folder`` differently."""
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(stated or CLASS_OF_TYPE.get(str(config.get("model_type")), "")).removesuffix("Fast")
    if name in BERT_CLASSES:
        _check_bert(folder, parts, settings, name, refuse)
    elif name in ROBERTA_CLASSES:
        wanted = bool(settings.get("add_prefix_space", False))
        found = (parts.pre_tokenizer or {}).get("add_prefix_space", "nothing")
        if found != wanted:
            raise refuse(
                _difference(
                    folder, "add_prefix_space", wanted, "add_prefix_space of the pre_tokenizer", found, settings
                )
            )


def _check_bert(
    folder: Path, parts: TokenizerParts, settings: Json, name: str, refuse: Callable[[str], UsageError]
) -> None:
    normalizer = parts.normalizer or {}
    if normalizer.get("type") != "BertNormalizer":
        kind = normalizer.get("type", "nothing")
        raise refuse(
            f"{folder / 'tokenizer.json'} has the normalizer {kind}, but {name} uses BertNormalizer; {WAY_OUT}"
        )
    lower = settings.get("do_lower_case", True)
    for key, field, default in (
        ("do_lower_case", "lowercase", True),
        ("tokenize_chinese_chars", "handle_chinese_chars", True),
        ("strip_accents", "strip_accents", lower),
    ):
        wanted, found = (
            lower if value is None else value for value in (settings.get(key, default), normalizer.get(field))
        )
        if bool(found) != bool(wanted):
            raise refuse(_difference(folder, key, wanted, f"{field} of the normalizer", found, settings))
    if not normalizer.get("clean_text", True):
        raise refuse(f"{folder / 'tokenizer.json'} sets clean_text to false, but {name} uses true; {WAY_OUT}")
    kind = (parts.pre_tokenizer or {}).get("type", "nothing")
    if kind != "BertPreTokenizer":
        raise refuse(
            f"{folder / 'tokenizer.json'} has the pre_tokenizer {kind}, but {name} uses BertPreTokenizer; {WAY_OUT}"
        )
    first, last = SPECIAL_TOKENS.get(name, ("[CLS]", "[SEP]"))
    wanted_tokens = (_text(settings.get("cls_token"), first), _text(settings.get("sep_token"), last))
    found_tokens = _around(parts.post_processor)
    if found_tokens != wanted_tokens:
        shown = " and ".join(found_tokens) if found_tokens else "nothing, or other tokens,"
        raise refuse(
            f"{folder / 'tokenizer.json'} adds {shown} around a text (post_processor), but {name} adds "
            f"{' and '.join(wanted_tokens)}; {WAY_OUT}"
        )


def _difference(folder: Path, key: str, wanted: Any, part: str, found: Any, settings: Json) -> str:
    states = "sets" if settings.get(key) is not None else "means, by default,"
    stated = f"{folder / 'tokenizer_config.json'} {states} {key} {wanted}"
    return f"{stated}, but {part} in tokenizer.json is {found}; {WAY_OUT}"


def _text(token: Any, default: str) -> str:
    """The text of a special token, which is a string or an object."""
    return str(token.get("content", default) if isinstance(token, dict) else token or default)


def _around(post_processor: Json | None) -> tuple[str, ...]:
    """The special tokens before and after a single text; empty if there are none, or others than one on each side."""
    part = post_processor or {}
    if part.get("type") in ("BertProcessing", "RobertaProcessing"):
        return str(part["cls"][0]), str(part["sep"][0])
    single = part.get("single") or []
    if part.get("type") != "TemplateProcessing" or [next(iter(piece)) for piece in single] != [
        "SpecialToken",
        "Sequence",
        "SpecialToken",
    ]:
        return ()
    return str(single[0]["SpecialToken"]["id"]), str(single[2]["SpecialToken"]["id"])
