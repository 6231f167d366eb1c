"""Compares ``tokenizer_config.json`` with ``tokenizer.json``.

Separate from ``tokenizer_files``, which finds the files. transformers 5 rebuilds parts of most tokenizers from their
class and ``tokenizer_config.json``, and ignores these parts of ``tokenizer.json``. The front reads ``tokenizer.json``
only. Where the two may differ, it needs the file that transformers writes for its own tokenizer.
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
# Classes that use tokenizer.json as it is, without the suffix Fast.
AS_IS_CLASSES = frozenset({"", "PreTrainedTokenizer", "TokenizersBackend"})
# Classes that rebuild a ByteLevel pre-tokenizer (transformers/models/roberta/tokenization_roberta.py).
ROBERTA_CLASSES = frozenset({"RobertaTokenizer"})
# The class that transformers 5 uses if neither file names one (TOKENIZER_MAPPING_NAMES).
CLASS_OF_TYPE: Mapping[str, str] = {
    "albert": "AlbertTokenizer",
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "data2vec-text": "RobertaTokenizer",
    "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "gte": "XLMRobertaTokenizer",
    "ibert": "RobertaTokenizer",
    "megatron-bert": "BertTokenizer",
    "mobilebert": "MobileBertTokenizer",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "rembert": "RemBertTokenizer",
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
    "roformer": "RoFormerTokenizer",
    "squeezebert": "BertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
SPECIAL_TOKENS: Mapping[str, tuple[str, str]] = {"MPNetTokenizer": ("<s>", "</s>")}  # of the others: [CLS] and [SEP]


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


def rebuilt_part(parts: TokenizerParts, settings: Json, config: Json) -> str | None:
    """What transformers would rebuild differently from tokenizer.json, in words, or ``None`` if it certainly builds
    the same tokenizer. ``settings`` is tokenizer_config.json, ``config`` the model's config.json."""
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(stated or CLASS_OF_TYPE.get(str(config.get("model_type")), "")).removesuffix("Fast")
    if "auto_map" in settings:
        return "the model's own tokenizer class"
    if name in AS_IS_CLASSES:
        return None
    if name in BERT_CLASSES:
        return _bert_difference(parts, settings, name)
    if name in ROBERTA_CLASSES:
        return _roberta_difference(parts, settings)
    return f"the class {name}"


def _bert_difference(parts: TokenizerParts, settings: Json, name: str) -> str | None:
    normalizer = parts.normalizer or {}
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("clean_text", True):
        return "normalizer"
    lower = settings.get("do_lower_case", True)
    for key, field, default in (
        ("do_lower_case", "lowercase", True),
        ("tokenize_chinese_chars", "handle_chinese_chars", True),
        ("strip_accents", "strip_accents", lower),
    ):
        wanted, found = settings.get(key, default), normalizer.get(field)
        if bool(lower if wanted is None else wanted) != bool(lower if found is None else found):
            return key
    if (parts.pre_tokenizer or {}).get("type") != "BertPreTokenizer":
        return "pre_tokenizer"
    return _special_tokens_difference(parts, settings, SPECIAL_TOKENS.get(name, ("[CLS]", "[SEP]")))


def _roberta_difference(parts: TokenizerParts, settings: Json) -> str | None:
    pre_tokenizer = parts.pre_tokenizer or {}
    if parts.normalizer is not None:
        return "normalizer"
    if pre_tokenizer.get("type") != "ByteLevel":
        return "pre_tokenizer"
    if bool(pre_tokenizer.get("add_prefix_space", True)) != bool(settings.get("add_prefix_space", False)):
        return "add_prefix_space"
    return _special_tokens_difference(parts, settings, ("<s>", "</s>"))


def _special_tokens_difference(parts: TokenizerParts, settings: Json, default: tuple[str, str]) -> str | None:
    wanted = (_text(settings.get("cls_token"), default[0]), _text(settings.get("sep_token"), default[1]))
    return None if _around(parts.post_processor) == wanted else "post_processor"


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
