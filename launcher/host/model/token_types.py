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

# The default of ``type_vocab_size`` in transformers/models/*/configuration_*.py, where it is not 2. A model with 0
# ignores token types.
DEFAULTS: Mapping[str, int] = {
    "bert-generation": 0,
    "deberta": 0,
    "deberta-v2": 0,
    "distilbert": 0,
    "eurobert": 0,
    "fnet": 4,
    "gte": 1,
    "jina_embeddings_v3": 1,
    "modernbert": 0,
    "mpnet": 0,
    "openai_privacy_filter": 0,
    "ultrabert": 0,
    "xlm-roberta-xl": 1,
    "xlnet": 4,  # compares types only; its tokenizer sets 2 for <cls> and 3 for padding
    "yoso": 1,
}


def token_types_of(config: Json) -> int:
    """The number of token types in config.json, 0 if the model ignores them."""
    count = config.get("type_vocab_size")
    if isinstance(count, int) and not isinstance(count, bool):
        return max(0, count)
    return DEFAULTS.get(str(config.get("model_type")), 2)


def check_pairs(model_info: ModelInfo, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the task needs pairs of texts, and the model lacks the token types that its tokenizer
    sets for them."""
    if model_info.task in PAIR_TASKS and model_info.sends_token_types and model_info.token_types == 1:
        raise refuse(
            "config.json sets type_vocab_size to 1, but the tokenizer sets token type 1 for the second text of a pair, "
            f"so the model cannot compute the pairs of --task {model_info.task}; --task classify serves single texts"
        )
