"""Token types (segments): how many a model distinguishes.

Separate from ``heads`` because every task needs it. Whether the tokenizer passes token types to the model is read in
``tokenizer_files``. The reference is transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.json_files import Json, ModelErrors
from launcher.options.choices import Task

# The tasks whose inputs are always pairs of texts.
PAIR_TASKS: frozenset[Task] = frozenset({"rerank", "zero-shot", "question-answering"})

# The default of ``type_vocab_size`` in transformers/models/*/configuration_*.py. Other families have no token types
# unless their config.json states the number.
DEFAULTS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "electra", "ernie", "ibert",
            "longformer", "luke", "megatron-bert", "mobilebert", "nomic_bert", "nystromformer", "rembert", "roberta",
            "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta",
        ),
        2,
    ),
    "fnet": 4,
    "gte": 1,
    "jina_embeddings_v3": 1,
    "xlm-roberta-xl": 1,
    # It has no table of them: it computes whether two tokens have the same one. Its tokenizer uses 0, 1 and 2.
    "xlnet": 3,
}  # fmt: skip


def token_types_of(config: Json) -> int:
    """The number of token types in config.json, 0 if the model ignores them."""
    count = config.get("type_vocab_size")
    if isinstance(count, int) and not isinstance(count, bool):
        return max(0, count)
    return DEFAULTS.get(str(config.get("model_type")), 0)


def check_pairs(model_info: ModelInfo, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the task needs pairs of texts, and the model lacks the token types that its tokenizer
    sets for them."""
    if model_info.task in PAIR_TASKS and model_info.sends_token_types and model_info.token_types == 1:
        raise refuse(
            "config.json sets type_vocab_size to 1, but the tokenizer sets token type 1 for the second text of a pair, "
            f"so the model cannot compute the pairs of --task {model_info.task}; --task classify serves single texts"
        )
