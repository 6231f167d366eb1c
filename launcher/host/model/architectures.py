"""Which architectures can be served, from config.json: types of models, positions, scaling of positions.

Separate from ``folder``, which reads everything else in a model folder, because these lists grow with each family of
models. Only the config is read here; the weights and the tokenizer are read elsewhere. An architecture whose results
depend on the other texts of a batch is refused, because no batch would give the result of a text alone.
"""

from __future__ import annotations

from typing import Any

from launcher.host.model.json_files import Json, ModelErrors
from launcher.options import ModelOptions

# Encoders of transformers whose results do not depend on padding. Excluded after measurement: convbert, fnet,
# nystromformer and yoso mix padding into their results (cosine similarity 0.37 to 0.97 between alone and padded).
ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "eurobert",
        "gte",
        "ibert",
        "megatron-bert",
        "mobilebert",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roformer",
        "squeezebert",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)

# Decoders whose hidden states are embeddings. They run as encoders do, with causal attention or, if their config says
# so, without it.
DECODERS = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"})

# Encoder-decoder models of which only the encoder is loaded, as sentence-transformers does.
ENCODER_DECODERS = frozenset({"mt5", "t5", "umt5"})

GENERATIVE_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

# Their first token has position padding_idx + 1, so that many entries of the position table are unusable.
POSITIONS_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)

# Rotary positions whose frequencies are chosen by the length of the longest text in a batch
# (transformers/modeling_rope_utils.py, dynamic_rope_update), besides all types with "dynamic" in their name. "su" is
# the former name of longrope.
BATCH_DEPENDENT_ROPE = frozenset({"longrope", "su"})


def read_architecture(config: Json, options: ModelOptions, refuse: ModelErrors, *, embedder: bool) -> str:
    """The architecture named in config.json, or else its model type, if it is supported.

    ``embedder`` tells whether files of sentence-transformers say how the model makes an embedding. Raises
    ``UsageError`` if the architecture is not supported, and for a model that generates text and is no embedder unless
    embeddings are requested.
    """
    kind = str(config.get("model_type", "nothing"))
    architectures = config.get("architectures") or [kind]
    architecture = str(architectures[0])
    own_code = "auto_map" in config
    if kind in DECODERS | ENCODER_DECODERS:
        _check_decoder(kind, architecture, embedder or options.task == "embed", refuse)
        return architecture
    if architecture.endswith(GENERATIVE_HEADS) or config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise refuse(
            f"a {kind} model ({architecture}) generates text; encoders can be served, and embeddings of decoders of "
            f"these types: {', '.join(sorted(DECODERS | ENCODER_DECODERS))}"
        )
    if kind in ENCODERS or (own_code and options.trust_remote_code):
        return architecture
    if own_code:
        raise refuse(
            f"a {kind} model ({architecture}) contains its own code, which runs only with --trust-remote-code; "
            "review it first"
        )
    raise refuse(
        f"config.json has the model_type {kind} ({architecture}), which is not supported; text encoders of these types "
        f"can be served: {', '.join(sorted(ENCODERS | DECODERS | ENCODER_DECODERS))}"
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
            f"a {kind} model ({architecture}) generates text, and no modules.json of sentence-transformers says how to "
            "make an embedding with it; --task embed serves the mean of its hidden states"
        )


def check_positions(config: Json, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` for positions that depend on the other texts of a batch."""
    for key in ("rope_scaling", "rope_parameters"):
        for kind in _rope_types(config.get(key)):
            if kind in BATCH_DEPENDENT_ROPE or "dynamic" in kind:
                raise refuse(
                    f"config.json sets the type of {key} to {kind!r}, whose factors depend on the longest text of a "
                    "batch, so that a text would have different results alone and in a batch; this is not supported"
                )


def _rope_types(value: Any) -> list[str]:
    """The types in ``rope_scaling`` or ``rope_parameters``; the latter may have one object per type of layer."""
    if not isinstance(value, dict):
        return []
    own = value.get("rope_type", value.get("type"))
    return [str(own)] * (own is not None) + [kind for part in value.values() for kind in _rope_types(part)]
