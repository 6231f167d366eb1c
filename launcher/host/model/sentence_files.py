"""Reads the files that sentence-transformers adds to a model folder: modules, limits and settings.

Separate from ``folder`` because these files have rules of their own. The reference is sentence-transformers 6. Every
key is either implemented, or on a list of keys that cannot change a result, or refused with its file and value: an
approximation gives wrong vectors. The modules are read in ``sentence_modules``, the settings of the whole model in
``sentence_settings``. Neither torch nor sentence-transformers may be imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.protocol.task_settings import SparsePooling
from launcher.host.model.json_files import Json, ModelErrors, read_object
from launcher.host.model.router import Router, read_router
from launcher.host.model.sentence_modules import MODULES, ModuleChain, read_modules
from launcher.host.model.sentence_settings import SETTINGS, Settings, read_settings
from launcher.host.model.splade import MASKED_LANGUAGE_MODEL, SPARSE_ENCODER, SPLADE_LIMITS

# In the order of sentence-transformers, which reads the first file that is not empty.
LIMIT_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# Keys of LIMIT_FILES with any value: implemented, or without influence on results.
LIMIT_KEYS = frozenset(
    {
        "max_seq_length",  # implemented
        "do_lower_case",  # implemented: changes the tokenizer
        "unpad_inputs",  # selects how batches are computed, not the result
        "backend",  # the library replaces it by that of its caller
    }
)
# Keys of LIMIT_FILES that are not supported, which the library takes if they are null or empty.
UNSET_KEYS = frozenset(
    {"processing_kwargs", "query_length", "document_length", "query_expansion", "tokenizer_name_or_path"}
)
FEATURE_EXTRACTION = "feature-extraction"  # the task of a Transformer that names none
# Keys of LIMIT_FILES with their default values, by the kind of model.
LIMIT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "SentenceTransformer": {
        "transformer_task": FEATURE_EXTRACTION,
        "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    },
    "CrossEncoder": {
        "transformer_task": "sequence-classification",
        "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    },
    SPARSE_ENCODER: SPLADE_LIMITS,
}
# The same for a SentenceTransformer whose first module makes text features: a CLIPModel, or a Transformer as versions
# from 5.4 on save it. It may embed images, too.
FEATURE_DEFAULTS: Mapping[str, Any] = {
    "transformer_task": FEATURE_EXTRACTION,
    "module_output_name": "sentence_embedding",
}
FEATURE_METHOD = {"method": "get_text_features", "method_output_name": "pooler_output"}
# Arguments of from_pretrained of the model, the tokenizer and the config, under a current and a former name.
MODEL_ARGUMENTS = ("model_kwargs", "model_args")
TOKENIZER_ARGUMENTS = ("processor_kwargs", "tokenizer_args")
CONFIG_ARGUMENTS = ("config_kwargs", "config_args")
ARGUMENTS = (*MODEL_ARGUMENTS, *TOKENIZER_ARGUMENTS, *CONFIG_ARGUMENTS)
HARMLESS_ARGUMENTS = frozenset(
    {
        "trust_remote_code",  # ignored by sentence-transformers too; --trust-remote-code decides
        "subfolder", "token", "cache_dir", "revision", "local_files_only",  # replaced by those of its caller
        "attn_implementation",  # the same result, computed differently
        "dtype",  # --dtype sets the precision
        "torch_dtype",  # the former name of dtype
        "device_map",  # the place of the weights
        "low_cpu_mem_usage",  # how weights are loaded
        "use_safetensors",  # which copy of the weights is loaded
        "use_cache",  # keys and values of a generator, which are not used here
        "use_fast",  # ignored by transformers 5
    }
)  # fmt: skip

# Arguments of the tokenizer with which transformers builds it.
BUILDING_ARGUMENTS = frozenset(
    {
        "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "add_bos_token",
        "add_eos_token", "legacy", "model_input_names", "unk_token", "sep_token", "pad_token", "cls_token",
        "mask_token", "bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens",
    }
)  # fmt: skip

# The library sets include_prompt of these to false, whatever their files say.
INSTRUCTORS = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """The settings in the files of sentence-transformers; the defaults apply if there are none.

    ``folder`` is that of the first module. ``chain`` has the modules, and is ``None`` without these files; then
    ``kind`` is an empty string, and otherwise the class that saved the model. ``lower_case``: lower-case each text
    before anything else. ``tokenizer_arguments`` are those with which the tokenizer is built. ``router`` is set if the
    model has routes; then the other fields are those of the first route, and ``second`` has those of the second, unless
    that is a SparseStaticEmbedding.
    """

    folder: Path
    chain: ModuleChain | None = None
    max_length: int | None = None
    lower_case: bool = False
    tokenizer_arguments: Json = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    router: Router | None = None
    second: SentenceFiles | None = None

    @property
    def kind(self) -> str:
        """The class of sentence-transformers that saved the model; empty without its files."""
        return self.settings.kind if self.chain is not None else ""

    @property
    def sparse(self) -> SparsePooling | None:
        """The pooling of a sparse encoder; ``None`` for other models."""
        if self.chain is None or self.chain.splade is None:
            return None
        return msgspec.structs.replace(self.chain.splade, max_active=self.settings.max_active_dims)

    @property
    def activation(self) -> str | None:
        """The dotted path of the activation of a cross-encoder."""
        return self.settings.activation


def read_sentence_files(folder: Path, refuse: ModelErrors) -> SentenceFiles:
    """The settings of the model in ``folder``. Raises ``UsageError`` for everything that cannot be done exactly."""
    path = folder / MODULES
    if not path.is_file():
        return SentenceFiles(folder)
    settings = read_settings(folder / SETTINGS, refuse)
    sparse = settings.kind == SPARSE_ENCODER
    router = read_router(path, refuse, sparse=sparse) if settings.kind != "CrossEncoder" else None
    if router is None:
        return _of_chain(folder, read_modules(path, refuse), settings, refuse)
    second = None if isinstance(router.second, Path) else _of_chain(folder, router.second, settings, refuse)
    return replace(_of_chain(folder, router.first, settings, refuse), router=router, second=second)


def _of_chain(folder: Path, chain: ModuleChain, settings: Settings, refuse: ModelErrors) -> SentenceFiles:
    if settings.kind == "CrossEncoder":
        _check_cross_encoder(folder, chain, settings, refuse)
    if chain.static:
        return SentenceFiles(chain.input, chain, settings=settings)
    defaults = FEATURE_DEFAULTS if chain.features else LIMIT_DEFAULTS[settings.kind]
    limits = _limits(chain.input, defaults, refuse)
    _check_sparse_encoder(chain, settings, limits, refuse)
    return SentenceFiles(
        folder=chain.input,
        chain=chain,
        max_length=_stated_length(limits),
        lower_case=bool(limits.get("do_lower_case")),
        tokenizer_arguments={
            key: value for key, value in _tokenizer_arguments(limits).items() if key in BUILDING_ARGUMENTS
        },
        settings=settings,
    )


def _check_cross_encoder(folder: Path, chain: ModuleChain, settings: Settings, refuse: ModelErrors) -> None:
    if chain.static or chain.pooling is not None or chain.token_modules or chain.modules:
        raise refuse(f"{folder / MODULES} lists other modules than a Transformer; a CrossEncoder must have only that")
    if settings.default_prompt:
        raise refuse(
            f"{folder / SETTINGS} sets default_prompt_name of a CrossEncoder, which is not supported; it must be null: "
            "remove it from a copy of the folder, and include the prompt in the texts"
        )


def _check_sparse_encoder(chain: ModuleChain, settings: Settings, limits: Json, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` unless a SparseEncoder, and no other model, pools the logits of a masked language model."""
    sparse = settings.kind == SPARSE_ENCODER
    if sparse != (chain.splade is not None) or (sparse and (chain.modules or chain.pooling or chain.token_modules)):
        raise refuse(
            f"{chain.path} does not list the modules of a {settings.kind} (model_type in {SETTINGS}): a SparseEncoder "
            "must have a Transformer and SpladePooling, and other models must not have SpladePooling"
        )
    if chain.masked_language_model and not sparse:
        raise refuse(f"{chain.path} lists MLMTransformer, which only a SparseEncoder may have")
    if sparse and not chain.masked_language_model and limits.get("transformer_task") != MASKED_LANGUAGE_MODEL:
        raise refuse(
            f"{chain.input / LIMIT_FILES[0]} sets transformer_task to {limits.get('transformer_task')!r}; before "
            f"SpladePooling it must be {MASKED_LANGUAGE_MODEL!r}"
        )


def _limits(encoder: Path, defaults: Json, refuse: ModelErrors) -> Json:
    """The settings in the first file of LIMIT_FILES that is not empty."""
    for path in (encoder / name for name in LIMIT_FILES):
        limits = read_object(path, refuse) if path.is_file() else {}
        if limits:
            _check_limits(path, limits, defaults, refuse)
            return limits
    return {}


def _check_limits(path: Path, limits: Json, defaults: Json, refuse: ModelErrors) -> None:
    for key, value in limits.items():
        if key in ARGUMENTS:
            _check_arguments(path, key, value, refuse)
        elif key == "modality_config" and defaults is FEATURE_DEFAULTS:
            _check_features(path, value, refuse)
        elif key in UNSET_KEYS:
            if value not in (None, {}):
                raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be null or absent")
        elif key not in LIMIT_KEYS and (key not in defaults or value != defaults[key]):
            wanted = f"{defaults[key]!r} or absent" if key in defaults else "absent"
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be {wanted}")
    if "modality_config" in limits:  # then the library does not infer these
        for key in ("module_output_name", "transformer_task"):
            if key not in limits and defaults[key] != FEATURE_EXTRACTION:
                raise refuse(f"{path} sets modality_config and has no {key}; it must be {defaults[key]!r}")
    _check_length(path, "max_seq_length", limits.get("max_seq_length"), refuse)


def _check_features(path: Path, modalities: Any, refuse: ModelErrors) -> None:
    if (
        not isinstance(modalities, dict)
        or modalities.get("text") != FEATURE_METHOD
        or set(modalities)
        - {
            "text",
            "image",
        }
    ):
        raise refuse(
            f"{path} sets modality_config to {modalities!r}, which is not supported; text must be {FEATURE_METHOD!r}, "
            "and there may be images besides"
        )


def _check_arguments(path: Path, key: str, arguments: Any, refuse: ModelErrors) -> None:
    if not isinstance(arguments, dict):
        if arguments is not None:
            raise refuse(f"{path} sets {key} to {arguments!r}, but it must be an object")
        return
    known = HARMLESS_ARGUMENTS
    if key in TOKENIZER_ARGUMENTS:
        known |= BUILDING_ARGUMENTS | {"model_max_length"}
        if "model_max_length" in arguments:
            _check_length(path, f"{key}.model_max_length", arguments["model_max_length"] or 0, refuse)
    if others := {name: value for name, value in arguments.items() if name not in known}:
        raise refuse(f"{path} sets {key} to {others!r}, which is not supported; remove these arguments")


def _check_length(path: Path, key: str, length: Any, refuse: ModelErrors) -> None:
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise refuse(f"{path} sets {key} to {length!r}, but it must be a positive integer or null")


def _stated_length(limits: Json) -> int | None:
    """The maximum number of tokens. As in the library, ``model_max_length`` among the arguments of the tokenizer
    replaces ``max_seq_length``."""
    length: int | None = _tokenizer_arguments(limits).get("model_max_length")
    return limits.get("max_seq_length") if length is None else length


def _tokenizer_arguments(limits: Json) -> Json:
    """The arguments of the tokenizer. As in the library, their former name replaces the current one."""
    current, former = TOKENIZER_ARGUMENTS
    return (limits[former] if former in limits else limits.get(current)) or {}
