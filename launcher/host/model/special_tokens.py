"""The ids of special tokens, which a tokenizer's files name.

Separate because several tasks need them. How a text gets special tokens does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.host.model.json_files import ModelErrors, read_object

# In the order of transformers: the second one is read by older versions only, but names the same tokens.
FILES = ("tokenizer_config.json", "special_tokens_map.json")

# The defaults of transformers' tokenizer classes: those of BERT, and those of RoBERTa and sentencepiece.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "mask_token": ("[MASK]", "<mask>"),
    "cls_token": ("[CLS]", "<s>"),
    "eos_token": ("</s>",),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
}


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerJson(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def special_token_id(name: str, tokenizer_file: Path, folders: Sequence[Path], refuse: ModelErrors) -> int | None:
    """The id of a special token, such as ``mask_token``, as the files in ``folders`` name it, or else by the defaults
    of tokenizer classes; None if the tokenizer has none."""
    added = msgspec.json.decode(tokenizer_file.read_bytes(), type=_TokenizerJson).added_tokens
    ids = {token.content: token.id for token in added}
    for path in (folder / file for folder in folders for file in FILES):
        value = read_object(path, refuse).get(name) if path.is_file() else None
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None:
            return ids.get(str(content))
    return next((ids[content] for content in DEFAULTS[name] if content in ids), None)


def cleans_up_spaces(tokenizer_file: Path, folders: Sequence[Path], refuse: ModelErrors) -> bool:
    """Whether transformers removes the spaces before punctuation from decoded texts: if ``tokenizer_config.json`` asks
    for it, and the tokenizer is not a BPE, unless that is asked for, too."""
    path = next((folder / FILES[0] for folder in folders if (folder / FILES[0]).is_file()), None)
    settings = read_object(path, refuse) if path is not None else {}
    if not settings.get("clean_up_tokenization_spaces"):
        return False
    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    return bool(forced) or _model_type(tokenizer_file) != "BPE"


class _ModelType(msgspec.Struct):
    type: str | None = None


class _TypedTokenizer(msgspec.Struct):
    model: _ModelType


def _model_type(tokenizer_file: Path) -> Any:
    return msgspec.json.decode(tokenizer_file.read_bytes(), type=_TypedTokenizer).model.type
