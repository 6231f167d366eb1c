"""The text encoders of transformers, by the ``model_type`` of config.json: how their items may be batched, and why
others are refused.

Separate from ``architectures``, which decides with these tables. The reference for each entry is the model's code in
transformers 5. Only the config is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from launcher.core.protocol.model_info import Batching
from launcher.host.model.json_files import Json, ModelErrors

# What must hold for each entry: the result of a text alone is that of transformers, and other texts in its batch do not
# change it. "packed" means that packing is tried, and checked when the model is loaded.
ENCODERS: Mapping[str, Batching] = {
    "albert": "packed",
    "bert": "packed",
    "bert-generation": "packed",
    "big_bird": "padded",
    "camembert": "packed",
    "convbert": "equal",  # convolutions over the words around each word, padding included
    "data2vec-text": "packed",
    "deberta": "packed",
    "deberta-v2": "packed",
    "distilbert": "packed",
    "electra": "packed",
    "ernie": "packed",
    "eurobert": "packed",
    "fnet": "equal",  # a Fourier transform over all tokens, padding included
    "gte": "packed",
    "ibert": "packed",
    "jina_embeddings_v3": "packed",
    "longformer": "padded",
    "luke": "padded",
    "megatron-bert": "packed",
    "mobilebert": "padded",  # concatenates the embeddings of adjacent tokens
    "modernbert": "packed",
    "mpnet": "packed",
    "nomic_bert": "packed",
    "nystromformer": "equal",  # its landmarks are means over segments of the padded text
    "openai_privacy_filter": "padded",
    "rembert": "packed",
    "roberta": "packed",
    "roberta-prelayernorm": "packed",
    "roformer": "packed",
    "splinter": "padded",
    "squeezebert": "packed",
    "ultrabert": "packed",
    "xlm-roberta": "packed",
    "xlm-roberta-xl": "packed",
    "xlnet": "equal",  # its head reads the last token of a row, because its tokenizer pads on the left
    "xmod": "packed",
    "yoso": "equal",  # its convolution mixes neighbouring tokens, padding included
}

# Encoders that are refused, with the cause and what would work.
REFUSED: Mapping[str, str] = {
    "bros": "it needs the position of each word on a page, which texts do not have",
    "canine": "its tokenizer has no fast version, and only tokenizers with a tokenizer.json are supported",
    "cpmant": "its tokenizer has no fast version, and only tokenizers with a tokenizer.json are supported",
    "dpr": "its model classes return no token embeddings; convert the encoder to a BertModel "
    "(DPRQuestionEncoder.question_encoder.bert_model) and save that",
    "ernie_m": "transformers 5 does not contain it",
    "esm": "it is a model of proteins, not of texts",
    "esmc": "it is a model of proteins, not of texts",
    "flaubert": "its tokenizer has no fast version, and only tokenizers with a tokenizer.json are supported",
    "funnel": "it pools neighbouring tokens, padding included, and without padding transformers fails for short texts",
    "layoutlm": "it needs the position of each word on a page, which texts do not have",
    "layoutlmv2": "it needs an image of the page, which texts do not have",
    "layoutlmv3": "it needs an image of the page, which texts do not have",
    "lilt": "it needs the position of each word on a page, which texts do not have",
    "lxmert": "it needs an image in addition to the text",
    "markuplm": "it needs the path of each word in a page of HTML, which texts do not have",
    "mra": "its attention needs a CUDA kernel; without one, transformers computes zeros",
    "perceiver": "its tokenizer has no fast version, and only tokenizers with a tokenizer.json are supported",
    "qdqbert": "transformers 5 does not contain it",
    "reformer": "its attention uses random hashes, so the result of a text differs from run to run",
    "roc_bert": "its tokenizer, which adds the shape and pronunciation of each character, has no fast version",
    "siglip": "its result is that of the last token of a padded row, so it depends on the other texts of the batch",
    "siglip2": "its result is that of the last token of a padded row, so it depends on the other texts of the batch",
    "tapas": "it needs a table in addition to the text",
    "xlm": "its tokenizer has no fast version, and only tokenizers with a tokenizer.json are supported",
}

# The operation of a model that torch does not have in bf16.
WITHOUT_BF16: Mapping[str, str] = {"fnet": "Fourier transforms"}

# Models of texts and images, of which texts go through get_text_features, as in sentence-transformers. No padding,
# because some take the state of the last or of the largest id for that of the text.
TEXT_TOWERS = frozenset({"altclip", "chinese_clip", "clip", "metaclip_2"})

# The names of the same size in the configs of different models.
HIDDEN_SIZE = ("hidden_size", "d_model", "dim", "n_embd", "emb_dim")
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")

# What transformers assumes for keys that configs of these types on the Hub lack.
DEFAULTS: Mapping[str, Json] = {
    "nomic_bert": {"hidden_size": 768, "num_hidden_layers": 12, "max_position_embeddings": 2048},
}

# The keys of NomicBERT's former own code (nomic-ai/nomic-bert-2048), the key of the class in transformers for the same
# value, and its default there. The class does not read the former keys: it computes with its defaults.
FORMER_NOMIC: Mapping[str, tuple[str, Any]] = {
    "n_embd": ("hidden_size", 768),
    "n_layer": ("num_hidden_layers", 12),
    "n_head": ("num_attention_heads", 12),
    "n_inner": ("intermediate_size", 3072),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
    "activation_function": ("hidden_act", "swiglu"),
    "rotary_emb_base": ("rope_parameters", 1000),
}
# Keys of that code that select other computations than those of the class, with the values that are the same.
NOMIC_VALUES: Mapping[str, tuple[Any, ...]] = {
    "rotary_emb_fraction": (1.0, 1),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "causal": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "use_rms_norm": (False, None),
    "moe_every_n_layers": (0, None),
}


def with_defaults(config: Json) -> Json:
    """``config`` with the defaults of the class in transformers, for a model that runs it.

    For a model of texts and images, the config of its part for texts.
    """
    kind = str(config.get("model_type"))
    if kind in TEXT_TOWERS:
        return _of_text_tower(config)
    return {**DEFAULTS.get(kind, {}), **config}


def _of_text_tower(config: Json) -> Json:
    """The config of the part for texts, with the width of its features as ``hidden_size``. Files of earlier versions
    have a ``text_config_dict`` that replaces values of ``text_config``."""
    text = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    own = {key: config[key] for key in ("model_type", "architectures") if key in config}
    return {**text, **own, "hidden_size": config.get("projection_dim")}


def check_big_bird(config: Json, max_length: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if some texts would be computed with sparse attention.

    transformers switches a BigBird to full attention when it gets a batch that is short enough, and never back
    (``BigBirdModel.forward``), so the library's result for a longer text depends on the texts before it.
    """
    if config.get("attention_type", "block_sparse") == "original_full":
        return
    limit = (5 + 2 * int(config.get("num_random_blocks", 3))) * int(config.get("block_size", 64))
    if max_length > limit:
        raise refuse(
            f"config.json sets attention_type to {config.get('attention_type', 'block_sparse')!r}, which transformers "
            f"uses for texts of more than {limit} tokens only until it gets a shorter one; set --max-length {limit}, "
            "or attention_type to 'original_full' in a copy of the folder"
        )


def check_xmod(config: Json, max_length: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if no language is chosen, whose adapter texts go through."""
    languages, default = config.get("languages") or ["en_XX"], config.get("default_language")
    if default not in languages:
        raise refuse(
            f"config.json sets default_language to {default!r}; it must be the language of the texts, one of "
            f"{', '.join(map(str, languages))}"
        )


def check_yoso(config: Json, max_length: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if attention is drawn at random."""
    if config.get("use_expectation", True) is not True:
        raise refuse(
            f"config.json sets use_expectation to {config['use_expectation']!r}, so attention is estimated with random "
            "hashes; it must be true"
        )


def check_nomic(config: Json, max_length: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` for keys of the model's former own code that transformers' own class would ignore."""
    for former, (key, default) in FORMER_NOMIC.items():
        stated = key in config and config[key] != DEFAULTS["nomic_bert"].get(key)
        if former in config and not stated and config[former] != default:
            raise refuse(
                f"config.json sets {former} to {config[former]!r}, a key of the model's own code that transformers "
                f"ignores: it would compute with {default!r}. Set {key} in a copy of the folder, or run the code with "
                "--trust-remote-code"
            )
    for key, values in NOMIC_VALUES.items():
        if key in config and config[key] not in values:
            raise refuse(
                f"config.json sets {key} to {config[key]!r}, which only the model's own code supports; it must be "
                f"{values[0]!r}, or run the code with --trust-remote-code"
            )


# Checks of single types. They get the largest number of tokens, too.
CHECKS: Mapping[str, Callable[[Json, int, ModelErrors], None]] = {
    "big_bird": check_big_bird,
    "nomic_bert": check_nomic,
    "xmod": check_xmod,
    "yoso": check_yoso,
}
