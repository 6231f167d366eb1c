"""Which architectures can be served, from config.json: types of models, positions, scaling of positions.

Separate from ``folder``, which reads everything else in a model folder, because these lists grow with each family of
models. Only the config is read here; the weights and the tokenizer are read elsewhere. An architecture whose results
depend on the other texts of a batch is refused, because no batch would give the result of a text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.core.protocol.model_info import Batching
from launcher.host.model.encoders import ENCODERS, REFUSED, TEXT_TOWERS
from launcher.host.model.json_files import Json, ModelErrors
from launcher.options import ModelOptions
from launcher.options.choices import Task

# The key of auto_map for the class of the model's own code that computes a task.
AUTO_CLASSES: Mapping[str, str] = {
    "embed": "AutoModel",
    "classify": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "zero-shot": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "sparse-embed": "AutoModelForMaskedLM",
    "fill-mask": "AutoModelForMaskedLM",
    "question-answering": "AutoModelForQuestionAnswering",
}

# Decoders whose hidden states are embeddings. They run as encoders do, with causal attention or, if their config says
# so, without it.
DECODERS = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"})

# Encoder-decoder models of which only the encoder is loaded, as sentence-transformers does.
ENCODER_DECODERS = frozenset({"mt5", "t5", "umt5"})

GENERATIVE_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

# Their first token has position padding_idx + 1, so that many entries of the position table are unusable.
POSITIONS_AFTER_PADDING = frozenset(
    {
        "altclip",
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)

# Their positions are computed for any length (rotary), so that max_position_embeddings limits nothing but what the
# library truncates to without max_seq_length.
WITHOUT_POSITION_TABLE = DECODERS | {"eurobert", "gte", "modernbert", "nomic_bert"}

# Parts of the names of rotary positions whose frequencies are chosen by the length of the longest text in a batch
# (transformers/modeling_rope_utils.py, dynamic_rope_update). "su" is the former name of longrope.
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
FORMER_LONGROPE = "su"


def read_architecture(config: Json, options: ModelOptions, refuse: ModelErrors, *, embedder: bool) -> str:
    """The architecture named in config.json, or else its model type, if it is supported.

    ``embedder`` tells whether files of sentence-transformers say how the model makes an embedding. Raises
    ``UsageError`` if the architecture is not supported, and for a model that generates text and is no embedder unless
    embeddings are requested.
    """
    kind = str(config.get("model_type", "nothing"))
    architecture = _named(config, kind, refuse)
    own_code = "auto_map" in config
    if kind in DECODERS | ENCODER_DECODERS:
        _check_decoder(kind, architecture, embedder or options.task == "embed", refuse)
        return architecture
    if architecture.endswith(GENERATIVE_HEADS) or config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise refuse(
            f"a {kind} model ({architecture}) generates text, which is not supported; embeddings can be served of "
            f"generative models of these types: {', '.join(sorted(DECODERS | ENCODER_DECODERS))}"
        )
    if kind in TEXT_TOWERS and not architecture.endswith("Model") and architecture != kind:
        raise refuse(
            f"config.json names the architecture {architecture}, and heads of {kind} models are not supported; only "
            "embeddings of texts can be served"
        )
    if kind in ENCODERS or kind in TEXT_TOWERS or (own_code and options.trust_remote_code):
        return architecture
    if own_code:
        raise refuse(
            f"a {kind} model ({architecture}) contains its own code, which runs only with --trust-remote-code; "
            "review it first"
        )
    if kind in REFUSED:
        raise refuse(f"config.json has the model_type {kind} ({architecture}), which is not supported: {REFUSED[kind]}")
    raise refuse(
        f"config.json has the model_type {kind} ({architecture}), which is not supported; text encoders of these types "
        f"can be served: {', '.join(sorted({*ENCODERS, *TEXT_TOWERS, *DECODERS, *ENCODER_DECODERS}))}"
    )


def _named(config: Json, kind: str, refuse: ModelErrors) -> str:
    """The first of the architectures in config.json; ``kind`` if it has none."""
    architectures = config.get("architectures") or [kind]
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise refuse(f"config.json sets architectures to {architectures!r}, but it must be a list of names of classes")
    return str(architectures[0])


def runs_own_code(config: Json, task: Task, options: ModelOptions) -> bool:
    """Whether transformers runs code from the model folder, and not a class of its own, for this task.

    As in ``AutoModel.from_pretrained``: its own class comes first unless the user trusts the code.
    """
    own = config.get("auto_map")
    return options.trust_remote_code and isinstance(own, dict) and AUTO_CLASSES.get(task, "AutoModel") in own


def batching_of(config: Json, task: Task, options: ModelOptions) -> Batching:
    """How the items of a model may be batched. What is not known about its code must not matter: then only items of
    equal length are computed together."""
    if runs_own_code(config, task, options):
        return "equal"
    if config.get("model_type") in TEXT_TOWERS:
        return "equal"
    return ENCODERS.get(str(config.get("model_type")), "packed")


def check_own_code(config: Json, task: Task, options: ModelOptions, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the code in the folder has no class for the task, and transformers has none either."""
    kind = config.get("model_type")
    supported = kind in ENCODERS or kind in DECODERS | ENCODER_DECODERS | TEXT_TOWERS
    if not supported and "auto_map" in config and not runs_own_code(config, task, options):
        raise refuse(
            f"auto_map in config.json names no {AUTO_CLASSES.get(task, 'AutoModel')}, which --task {task} needs, and "
            f"transformers has no class for the model_type {kind}"
        )


def _check_decoder(kind: str, architecture: str, embeds: bool, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` for a head that is not supported, and for a generative model unless it ``embeds``."""
    generates = architecture.endswith(GENERATIVE_HEADS)
    if not generates and architecture != kind and not architecture.endswith("Model"):
        raise refuse(
            f"config.json names the architecture {architecture}, and heads of {kind} models are not supported; only "
            "embeddings can be served"
        )
    if generates and not embeds:
        raise refuse(
            f"a {kind} model ({architecture}) generates text, and it has no modules.json that defines its embeddings; "
            "with --task embed, the pooling is the default of sentence-transformers: the last token of a ForCausalLM, "
            "otherwise the mean"
        )


def unused_weights(config: Json) -> tuple[str, ...]:
    """The prefixes of the weights that generate text, which are not loaded."""
    kind = config.get("model_type")
    if kind in ENCODER_DECODERS:
        return ("decoder.", "lm_head.")
    return ("lm_head.",) if kind in DECODERS else ()


def check_positions(config: Json, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` for positions that depend on the other texts of a batch."""
    for part in (config, config.get("text_config")):
        for key in ("rope_scaling", "rope_parameters"):
            for kind in _rope_types(part.get(key) if isinstance(part, dict) else None):
                if kind == FORMER_LONGROPE or any(name in kind for name in BATCH_DEPENDENT_ROPE):
                    raise refuse(
                        f"config.json sets the type of {key} to {kind!r}, whose factors depend on the longest text of "
                        "a batch, so a text would have different results alone and in a batch; it must be one "
                        "whose factors do not, such as 'default', 'linear', 'yarn' or 'llama3'"
                    )


def _rope_types(value: Any) -> list[str]:
    """The types in ``rope_scaling`` or ``rope_parameters``; the latter may have one object per type of layer."""
    if not isinstance(value, dict):
        return []
    own = value.get("rope_type", value.get("type"))
    return [str(own)] * (own is not None) + [kind for part in value.values() for kind in _rope_types(part)]
