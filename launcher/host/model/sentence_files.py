"""Reads the files that sentence-transformers adds to a model folder: modules, pooling, limits and prompts.

Separate from ``folder`` because these files have rules of their own. The reference is sentence-transformers 6. Every
key is either implemented, or on a list of keys that cannot change a result, or refused with its file and value: an
approximation gives wrong vectors. Neither torch nor sentence-transformers may be imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.core.protocol.model_info import Pooling
from launcher.host.model.json_files import Json, ModelErrors, read_object, read_value

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
POOLING_SETTINGS = "config.json"

# The full names of the supported classes, in the versions 0 to 6. The name of a class alone is not enough: a module of
# the model's own code may have the same one.
_BASE, _OWN = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
_LEGACY = "sentence_transformers.models"
MODULE_KINDS: Mapping[str, str] = {
    f"{_LEGACY}.Transformer": "Transformer",
    f"{_LEGACY}.Transformer.Transformer": "Transformer",
    f"{_BASE}.Transformer": "Transformer",
    f"{_BASE}.transformer.Transformer": "Transformer",
    f"{_OWN}.Transformer": "Transformer",
    f"{_LEGACY}.Pooling": "Pooling",
    f"{_LEGACY}.Pooling.Pooling": "Pooling",
    f"{_OWN}.Pooling": "Pooling",
    f"{_OWN}.pooling.Pooling": "Pooling",
    f"{_LEGACY}.Normalize": "Normalize",
    f"{_LEGACY}.Normalize.Normalize": "Normalize",
    f"{_BASE}.Normalize": "Normalize",
    f"{_BASE}.normalize.Normalize": "Normalize",
    f"{_OWN}.Normalize": "Normalize",
    f"{_OWN}.normalize.Normalize": "Normalize",
}
SEQUENCES = (("Transformer",), ("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))

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
        "do_lower_case",  # implemented: compared with the tokenizer
        "unpad_inputs",  # selects how batches are computed, not the result
    }
)
# Keys of LIMIT_FILES with their default values, by the kind of model.
LIMIT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "SentenceTransformer": {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    },
    "CrossEncoder": {
        "transformer_task": "sequence-classification",
        "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    },
}
# Arguments of from_pretrained, under a current and a former name.
ARGUMENTS = ("model_kwargs", "model_args", "processor_kwargs", "tokenizer_args", "config_kwargs", "config_args")
HARMLESS_ARGUMENTS = frozenset(
    {
        "trust_remote_code",  # ignored by sentence-transformers too; --trust-remote-code decides
        "attn_implementation",  # the same result, computed differently
        "dtype",  # --dtype sets the precision
        "torch_dtype",  # the former name of dtype
        "use_fast",  # ignored by transformers 5
    }
)

# Keys of SETTINGS with any value.
SETTINGS_KEYS = frozenset(
    {
        "__version__",  # the versions that saved the model
        "requirements",  # versions of packages that are checked, not used
        "model_type",  # implemented
        "prompts",  # added on request only, unless default_prompt_name is set
        "default_prompt_name",  # implemented
        "similarity_fn_name",  # how a client compares vectors
        "activation_fn",  # implemented for cross-encoders; the others do not read it
    }
)

# "embedding_dimension" and its former name state the size of the encoder's output; they select nothing.
POOLING_KEYS = frozenset({"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"})
# Flags of versions before 5.4, in the order of sentence-transformers.
MODE_FLAGS = tuple(
    f"pooling_mode_{mode}"
    for mode in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
)
SUPPORTED_MODES: Mapping[str, Pooling] = {
    "mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "max": "max", "max_tokens": "max",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """The settings in the files of sentence-transformers; the defaults apply if there are none.

    ``kind`` is the class that saved the model, or an empty string without these files. ``pooling`` is ``None`` if the
    model has no Pooling module. ``lower_case_file`` is the file that requests lower-casing, if one does.
    """

    folder: Path
    kind: str = ""
    pooling: Pooling | None = None
    normalize: bool = False
    max_length: int | None = None
    lower_case_file: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    activation: str | None = None


def read_sentence_files(folder: Path, refuse: ModelErrors) -> SentenceFiles:
    """The settings of the model in ``folder``. Raises ``UsageError`` for everything that cannot be done exactly."""
    path = folder / MODULES
    if not path.is_file():
        return SentenceFiles(folder)
    folders = _modules(path, refuse)
    settings = _settings(folder / SETTINGS, refuse)
    kind = settings.get("model_type", "SentenceTransformer")
    prompts = {str(key): str(text) for key, text in (settings.get("prompts") or {}).items() if text}
    encoder = folder / folders["Transformer"]
    limits_path, limits = _limits(encoder, kind, refuse)
    return SentenceFiles(
        folder=encoder,
        kind=kind,
        pooling=_pooling(folder / folders["Pooling"], bool(prompts), refuse) if "Pooling" in folders else None,
        normalize="Normalize" in folders,
        max_length=limits.get("max_seq_length"),
        lower_case_file=limits_path.name if limits.get("do_lower_case") else "",
        prompts=prompts,
        activation=settings.get("activation_fn") if kind == "CrossEncoder" else None,
    )


def _modules(path: Path, refuse: ModelErrors) -> dict[str, str]:
    """The folder of each module, by kind, in order."""
    modules = read_value(path, refuse)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise refuse(f"{path} must contain a list of modules")
    types = [str(module.get("type", "of no type")) for module in modules]
    unknown = next((name for name in types if name not in MODULE_KINDS), None)
    if unknown is not None:
        raise refuse(
            f"{path} requests the module {unknown.rpartition('.')[2]} (type {unknown!r}), which is not supported; "
            "supported are Transformer, Pooling and Normalize of sentence_transformers"
        )
    kinds = tuple(MODULE_KINDS[name] for name in types)
    if kinds not in SEQUENCES:
        raise refuse(
            f"{path} lists the modules {', '.join(kinds) or '(none)'}; they must be Transformer, Pooling and, "
            "optionally, Normalize, in this order"
        )
    return {kind: str(module.get("path", "")) for kind, module in zip(kinds, modules, strict=True)}


def _settings(path: Path, refuse: ModelErrors) -> Json:
    settings = read_object(path, refuse) if path.is_file() else {}
    for key, value in settings.items():
        if key not in SETTINGS_KEYS and value is not None:
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be null or absent")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind not in LIMIT_DEFAULTS:
        raise refuse(
            f"{path} sets model_type to {kind!r}, which is not supported; must be one of {', '.join(LIMIT_DEFAULTS)}"
        )
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict):
        raise refuse(f"{path} sets prompts to {prompts!r}, but they must be an object of names and texts")
    if default is not None and prompts.get(default) != "":
        raise refuse(
            f"{path} sets default_prompt_name to {default!r}, and adding a prompt to every text is not supported; it "
            "must be null: remove it from a copy of the folder, and include the prompt in the texts"
        )
    return settings


def _limits(encoder: Path, kind: str, refuse: ModelErrors) -> tuple[Path, Json]:
    """The first file of LIMIT_FILES that is not empty, and its settings."""
    for path in (encoder / name for name in LIMIT_FILES):
        limits = read_object(path, refuse) if path.is_file() else {}
        if limits:
            _check_limits(path, limits, LIMIT_DEFAULTS[kind], refuse)
            return path, limits
    return encoder / LIMIT_FILES[0], {}


def _check_limits(path: Path, limits: Json, defaults: Json, refuse: ModelErrors) -> None:
    for key, value in limits.items():
        if key in ARGUMENTS:
            others = sorted(set(value) - HARMLESS_ARGUMENTS) if isinstance(value, dict) else [repr(value)]
            if value and others:
                shown = {name: value[name] for name in others} if isinstance(value, dict) else value
                raise refuse(f"{path} sets {key} to {shown!r}, which is not supported; remove these arguments")
        elif key not in LIMIT_KEYS and value not in (None, {}, defaults.get(key)):
            wanted = f"{defaults[key]!r} or absent" if key in defaults else "null or absent"
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be {wanted}")
    length = limits.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise refuse(f"{path} sets max_seq_length to {length!r}, but it must be a positive integer or null")


def _pooling(folder: Path, has_prompts: bool, refuse: ModelErrors) -> Pooling:
    """The pooling mode of a pooling config, in its old form (flags) or its newer one (a name)."""
    path = folder / POOLING_SETTINGS
    config = read_object(path, refuse)
    for key, value in config.items():
        if key not in POOLING_KEYS and key not in MODE_FLAGS and value is not None:
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be absent")
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    else:
        # Without any mode, sentence-transformers uses the mean; it cannot load a config without any key.
        modes = [key.removeprefix("pooling_mode_") for key in MODE_FLAGS if config.get(key)]
        modes = modes or (["mean"] if config else [])
    if len(modes) != 1 or modes[0] not in SUPPORTED_MODES:
        raise refuse(f"{path} requests the pooling {' + '.join(modes) or 'none'}; it must be one of mean, cls and max")
    if has_prompts and config.get("include_prompt") is False:
        raise refuse(f"{path} excludes prompts from the pooling (include_prompt false), which is not supported")
    return SUPPORTED_MODES[modes[0]]
