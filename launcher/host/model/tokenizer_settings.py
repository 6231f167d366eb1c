"""Decides whether transformers builds from a model's files the tokenizer that its ``tokenizer.json`` describes.

Separate from ``tokenizer_files``, which finds the files. transformers 5 rebuilds most tokenizers from the class and
the settings in ``tokenizer_config.json``, and takes little more than the vocabulary from ``tokenizer.json``. The front
reads ``tokenizer.json`` only. It may use that of the model where both are certainly equal; this holds for nearly all
BERT, MPNet and RoBERTa models, which so need no conversion. In all other cases, and for every setting that is not known
here, it uses the file that transformers writes for its own tokenizer. An error here cannot give wrong results: the
worker compares the token ids before it is ready.

The rules follow ``models/auto/tokenization_auto.py``, ``tokenization_utils_base.py``, ``tokenization_utils_tokenizers``
and the modules of the named classes in transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.errors import UsageError

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """What a class of transformers builds. ``tokens``: the named special tokens that it adds by default.
    ``segment_ids``: whether it returns them by default, so that they are passed to the model."""

    builds: Literal["as in the file", "bert", "mpnet", "roberta"]
    segment_ids: bool
    tokens: Mapping[str, str] = field(default_factory=dict)


_BERT_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
                "mask_token": "[MASK]"}  # fmt: skip
_ROBERTA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
                   "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
CLASSES: Mapping[str, TokenizerClass] = {
    "TokenizersBackend": TokenizerClass("as in the file", segment_ids=False),
    "BertTokenizer": TokenizerClass("bert", segment_ids=True, tokens=_BERT_TOKENS),
    "DistilBertTokenizer": TokenizerClass("bert", segment_ids=False, tokens=_BERT_TOKENS),
    "MPNetTokenizer": TokenizerClass("mpnet", segment_ids=False, tokens={**_ROBERTA_TOKENS, "unk_token": "[UNK]"}),
    "RobertaTokenizer": TokenizerClass("roberta", segment_ids=False, tokens=_ROBERTA_TOKENS),
}
# Other names of the same classes, without the suffix Fast.
ALIASES: Mapping[str, str] = {
    "ElectraTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "PreTrainedTokenizer": "TokenizersBackend",
}
# The classes of model types (TOKENIZER_MAPPING_NAMES); an empty string: the type has none. For those that are not in
# CLASSES, the entry says that a class which the files name replaces it. Models of other types are converted.
CLASS_OF_TYPE: Mapping[str, str] = {
    "albert": "AlbertTokenizer",
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "data2vec-text": "RobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "eurobert": "",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "ibert": "RobertaTokenizer",
    "llama": "",
    "longformer": "RobertaTokenizer",
    "megatron-bert": "BertTokenizer",
    "mobilebert": "BertTokenizer",
    "modernbert": "TokenizersBackend",
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "new": "",
    "nomic_bert": "BertTokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
    "squeezebert": "BertTokenizer",
    "t5": "T5Tokenizer",
    "umt5": "TokenizersBackend",
    "xlm-roberta": "XLMRobertaTokenizer",
    "xlm-roberta-xl": "TokenizersBackend",
}

# Keys of tokenizer_config.json that are read elsewhere, compared below, or without influence on token ids.
KNOWN_KEYS = frozenset(
    {
        "tokenizer_class",  # selects the class
        "added_tokens_decoder",  # compared
        "additional_special_tokens",  # compared
        "extra_special_tokens",  # compared
        "do_lower_case",  # compared
        "strip_accents",  # compared
        "tokenize_chinese_chars",  # compared
        "add_prefix_space",  # compared
        "trim_offsets",  # compared
        "model_max_length",  # a fact: the limit
        "max_len",  # its former name
        "model_input_names",  # a fact: whether token types are passed
        "padding_side",  # checked
        "truncation_side",  # checked
        "split_special_tokens",  # checked
        "add_bos_token",  # ignored if there is a tokenizer.json
        "add_eos_token",  # ignored if there is a tokenizer.json
        "do_basic_tokenize",  # of slow tokenizers of transformers 4
        "never_split",  # of slow tokenizers of transformers 4
        "wordpieces_prefix",  # of decoding
        "errors",  # of decoding
        "clean_up_tokenization_spaces",  # of decoding
        "chat_template",  # of conversations
        "max_length",  # of tokenizer.json, which transformers copies here; replaced in every call
        "stride",  # as max_length
        "truncation_strategy",  # as max_length
        "pad_to_multiple_of",  # as max_length
        "pad_token_type_id",  # of padding, which is masked
        "name_or_path",  # where the tokenizer came from
        "special_tokens_map_file",  # where the tokenizer came from
        "tokenizer_file",  # replaced by the path of tokenizer.json
        "is_local",  # how it was loaded
        "local_files_only",  # how it was loaded
        "backend",  # "tokenizers", for every class in CLASSES
    }
)
# The tokens that stand for an image, a sound or a video, and the keys of objects that may contain them, too.
_MEDIA_TOKENS = ("image_token", "audio_token", "video_token")
_OBJECTS_OF_TOKENS = ("extra_special_tokens", "model_specific_special_tokens")
_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word", "special")

# Models whose results do not depend on whether shorter texts of a batch are padded on the left or on the right: their
# positions are relative, rotary, or counted from the first token that is not padding.
INDEPENDENT_OF_PADDING_SIDE = frozenset(
    {
        "camembert", "data2vec-text", "deberta", "deberta-v2", "eurobert", "gemma", "gemma2", "gemma3", "gemma3_text",
        "gte", "ibert", "llama", "longformer", "mistral", "modernbert", "mpnet", "mt5", "new", "nomic_bert", "qwen2",
        "qwen3", "roberta", "roberta-prelayernorm", "roformer", "t5", "umt5", "xlm-roberta", "xlm-roberta-xl", "xlnet",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What is compared. ``normalizer`` to ``padding`` are parts of tokenizer.json, each as its JSON object; ``None``:
    it has no such part. ``model`` has the settings of its model, and ``vocabulary`` the ids, without those of
    ``added_tokens``. The others are the files with these names; ``None``: there is no such file."""

    normalizer: Json | None
    pre_tokenizer: Json | None
    post_processor: Json | None
    truncation: Json | None
    padding: Json | None
    model: Json
    vocabulary: Mapping[str, int]
    added_tokens: tuple[Json, ...]
    tokenizer_config: Json
    special_tokens_map: Json | None
    more_added_tokens: Json | None

    @property
    def stated(self) -> dict[str, Any]:
        """The settings that apply: special_tokens_map.json counts unless tokenizer_config.json has added tokens."""
        legacy = {} if "added_tokens_decoder" in self.tokenizer_config else self.special_tokens_map or {}
        return {**self.tokenizer_config, **legacy}


@dataclass(frozen=True, slots=True)
class CallSettings:
    """The settings that transformers applies in every call."""

    truncation_side: str
    padding_side: str
    split_special_tokens: bool


def call_settings(parts: TokenizerParts) -> CallSettings:
    """The settings of a tokenizer of one of CLASSES. Without a setting, tokenizer.json decides."""
    truncation = (parts.truncation or {}).get("direction", "right")
    padding = (parts.padding or {}).get("direction", "right")
    return CallSettings(
        str(parts.tokenizer_config.get("truncation_side", truncation)).lower(),
        str(parts.tokenizer_config.get("padding_side", padding)).lower(),
        bool(parts.tokenizer_config.get("split_special_tokens", False)),
    )


def check_call_settings(
    parts: TokenizerParts, settings: CallSettings, arguments: Json, config: Json, refuse: Callable[[str], UsageError]
) -> None:
    """Raise ``UsageError`` for settings that are not implemented, or that make results depend on the batch.
    ``arguments`` are those of ``from_pretrained``."""
    independent = config.get("model_type") in INDEPENDENT_OF_PADDING_SIDE
    for key, side, wrong, own in (
        ("truncation_side", settings.truncation_side, True, parts.truncation),
        ("padding_side", settings.padding_side, not independent, parts.padding),
    ):
        if side == "right" or not wrong:
            continue
        if key in arguments:
            origin = "an argument of the tokenizer"
        elif key in parts.tokenizer_config:
            origin = "tokenizer_config.json"
        else:
            origin = "tokenizer.json" if own else "the class of the tokenizer"
        raise refuse(f"{origin} sets {key} to {side!r}, which is not supported for this model; it must be 'right'")
    if settings.split_special_tokens:
        raise refuse(
            "tokenizer_config.json sets split_special_tokens to true, which is not supported; it must be false or "
            "absent"
        )


def class_of(parts: TokenizerParts, config: Json) -> TokenizerClass | None:
    """The class that transformers uses, or ``None`` if it is not one of CLASSES or not certain."""
    registered = CLASS_OF_TYPE.get(str(config.get("model_type")))
    if registered is None or "auto_map" in parts.tokenizer_config:
        return None
    if registered == "TokenizersBackend":  # whatever the files name
        return CLASSES[registered]
    stated = parts.tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(stated or registered or "TokenizersBackend").removesuffix("Fast")
    return CLASSES.get(ALIASES.get(name, name))


def difference(parts: TokenizerParts, config: Json) -> str | None:
    """Why transformers may build another tokenizer than tokenizer.json describes, in a few words; ``None`` if it
    certainly builds the same. ``config`` is the model's config.json."""
    tokenizer_class = class_of(parts, config)
    if tokenizer_class is None:
        named = parts.tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
        return f"the class {named}" if named else f"the class for the model type {config.get('model_type')}"
    names = named_tokens(parts, tokenizer_class)
    if isinstance(names, str):
        return names
    different = _unknown_setting(parts) or _added_tokens(parts, names)
    if different is not None:
        return different
    if tokenizer_class.builds == "as in the file":
        # Without a post-processor, transformers adds one.
        return "post_processor" if parts.post_processor is None else _gap_in_ids(parts)
    different = _added_ids(parts)
    if different is not None:
        return different
    match tokenizer_class.builds:
        case "bert":
            return _wordpiece(parts, names) or _bert_post_processor(parts, names)
        case "mpnet":
            return _wordpiece(parts, names) or _roberta_post_processor(parts, names, prefix_space=False)
        case _:
            prefix_space = bool(parts.stated.get("add_prefix_space", False))
            return _byte_level(parts) or _roberta_post_processor(parts, names, prefix_space=prefix_space)


# --- special and added tokens


def named_tokens(parts: TokenizerParts, tokenizer_class: TokenizerClass) -> dict[str, str] | str:
    """The text of each named special token, or the name of the setting that is not understood."""
    tokens = dict(tokenizer_class.tokens)
    if tokenizer_class.builds == "as in the file" and (parts.padding or {}).get("pad_token") is not None:
        assert parts.padding is not None
        tokens["pad_token"] = str(parts.padding["pad_token"])
    for key, value in parts.stated.items():
        if not key.endswith("_token") or key in ("add_bos_token", "add_eos_token"):
            continue
        if value is None and key not in tokenizer_class.tokens:
            tokens.pop(key, None)
            continue
        text = value.get("content") if isinstance(value, dict) else value
        # An object in tokenizer_config.json is a token only with this mark.
        marked = key in (parts.special_tokens_map or {}) or not isinstance(value, dict) or "__type" in value
        if not isinstance(text, str) or not marked:
            return key
        tokens[key] = text
    return tokens


def media_tokens(parts: TokenizerParts) -> dict[str, int]:
    """The ids of the added tokens that stand for an image, a sound or a video, by their texts."""
    objects = [parts.stated, *(parts.stated.get(key) for key in _OBJECTS_OF_TOKENS)]
    named = [part.get(key) for part in objects if isinstance(part, dict) for key in _MEDIA_TOKENS]
    texts = [token.get("content") if isinstance(token, dict) else token for token in named]
    return {token["content"]: int(token["id"]) for token in parts.added_tokens if token["content"] in texts}


def _unknown_setting(parts: TokenizerParts) -> str | None:
    """The first setting that is not known."""
    for key, value in parts.tokenizer_config.items():
        if key not in KNOWN_KEYS and not key.endswith("_token") and value is not None:
            return key
    legacy = {} if "added_tokens_decoder" in parts.tokenizer_config else parts.special_tokens_map or {}
    return next((key for key in legacy if key not in _LIST_KEYS and not key.endswith("_token")), None)


def _added_tokens(parts: TokenizerParts, named: Mapping[str, str]) -> str | None:
    """Whether the added tokens in all files are those of tokenizer.json, with the same flags."""
    own = {int(token["id"]): _flags(token) for token in parts.added_tokens}
    special = {token["content"] for token in parts.added_tokens if token.get("special", False)}
    decoder = parts.tokenizer_config.get("added_tokens_decoder")
    if decoder is not None and {int(id): _flags(token) for id, token in decoder.items()} != own:
        return "added_tokens_decoder"
    for content, id in ({} if decoder is not None else parts.more_added_tokens or {}).items():
        if own.get(id, {}).get("content") != content:
            return "added_tokens.json"
    for key, text in named.items():
        if text not in special:
            return key
    for key in _LIST_KEYS:
        listed = parts.stated.get(key) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed
        if any((token.get("content") if isinstance(token, dict) else token) not in special for token in listed):
            return key
    return None


def _flags(token: Json) -> dict[str, Any]:
    """An added token with its defaults (``tokenizers.AddedToken``)."""
    flags = {key: bool(token.get(key, False)) for key in _FLAGS}
    return {"content": token.get("content"), "normalized": bool(token.get("normalized", not flags["special"])), **flags}


def _added_ids(parts: TokenizerParts) -> str | None:
    """Whether adding the tokens to the vocabulary, in the order of their ids, gives these ids."""
    size = len(parts.vocabulary)
    for token in sorted(parts.added_tokens, key=lambda token: int(token["id"])):
        expected = parts.vocabulary.get(token["content"], size)
        if expected != token["id"]:
            return f"the id of {token['content']}"
        size += expected == size
    return None


def _gap_in_ids(parts: TokenizerParts) -> str | None:
    """Whether the ids of added tokens leave a gap after those of the vocabulary: the Rust library would close it."""
    size = len(parts.vocabulary)
    beyond = sorted(id for token in parts.added_tokens if (id := int(token["id"])) >= size)
    return None if beyond == list(range(size, size + len(beyond))) else "the ids of added tokens"


# --- models, normalizers and pre-tokenizers


def _wordpiece(parts: TokenizerParts, named: Mapping[str, str]) -> str | None:
    model, normalizer, settings = parts.model, parts.normalizer or {}, parts.stated
    built = ("WordPiece", named["unk_token"], "##", 100)
    keys = ("type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word")
    if tuple(model.get(key) for key in keys) != built:
        return "model"
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("clean_text", True):
        return "normalizer"
    lower = settings.get("do_lower_case", True)
    for key, own, default in (
        ("do_lower_case", "lowercase", True),
        ("tokenize_chinese_chars", "handle_chinese_chars", True),
        ("strip_accents", "strip_accents", lower),
    ):
        wanted, found = settings.get(key, default), normalizer.get(own)
        if bool(lower if wanted is None else wanted) != bool(lower if found is None else found):
            return key
    return None if parts.pre_tokenizer == {"type": "BertPreTokenizer"} else "pre_tokenizer"


def _byte_level(parts: TokenizerParts) -> str | None:
    model, pre_tokenizer = parts.model, parts.pre_tokenizer or {}
    unset = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
             "ignore_merges")  # fmt: skip
    if model.get("type") != "BPE" or any(model.get(key) for key in unset):
        return "model"
    if parts.normalizer is not None:
        return "normalizer"
    if pre_tokenizer.get("type") != "ByteLevel" or not pre_tokenizer.get("use_regex", True):
        return "pre_tokenizer"
    if bool(pre_tokenizer.get("add_prefix_space", True)) != bool(parts.stated.get("add_prefix_space", False)):
        return "add_prefix_space"
    return None


# --- post-processors


def _bert_post_processor(parts: TokenizerParts, named: Mapping[str, str]) -> str | None:
    """As a template: ``[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1``."""
    part, cls, sep = parts.post_processor or {}, named["cls_token"], named["sep_token"]
    ids = {token: _id(parts, token) for token in (cls, sep)}
    if part.get("type") == "BertProcessing":
        same = list(part["cls"]) == [cls, ids[cls]] and list(part["sep"]) == [sep, ids[sep]]
        return None if same else "post_processor"
    single = [(cls, 0), ("A", 0), (sep, 0)]
    wanted = (single, [*single, ("B", 1), (sep, 1)])
    found = tuple(
        [(piece["id"], piece["type_id"]) for entry in part.get(key) or [] for piece in entry.values()]
        for key in ("single", "pair")
    )
    tokens = part.get("special_tokens") or {}
    same_ids = all((tokens.get(token) or {}).get("ids") == [id] for token, id in ids.items())
    return None if part.get("type") == "TemplateProcessing" and found == wanted and same_ids else "post_processor"


def _roberta_post_processor(parts: TokenizerParts, named: Mapping[str, str], *, prefix_space: bool) -> str | None:
    part = parts.post_processor or {}
    wanted: dict[str, Any] = {
        "type": "RobertaProcessing",
        "sep": [named["sep_token"], _id(parts, named["sep_token"])],
        "cls": [named["cls_token"], _id(parts, named["cls_token"])],
        "trim_offsets": bool(parts.stated.get("trim_offsets", True)),
        "add_prefix_space": prefix_space,
    }
    return None if {"trim_offsets": True, "add_prefix_space": True, **part} == wanted else "post_processor"


def _id(parts: TokenizerParts, token: str) -> int | None:
    return next((int(entry["id"]) for entry in parts.added_tokens if entry["content"] == token), None)
