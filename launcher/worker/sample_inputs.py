"""Inputs that a worker makes itself: texts to check results with, and token ids to time batches with.

The check texts are real texts of several lengths, because random ids give hidden states unlike those of language.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.interfaces import Item, ItemBatch, TokenIds

CHECK_TEXTS = (
    "yes",
    "Where is the nearest station?",
    "The harvest was late that year, and the barns stood half empty until the first frost.",
    "Error 1604: the connection to 10.0.0.7:5432 was lost after 3 attempts.",
    "Invoices are due within thirty days of receipt; a fee of 2 % is added for each month after that date.",
    "She had read the letter twice before she noticed that the second page was in a different hand, smaller and "
    "slanted to the left, as though someone had finished it in a hurry, at night, by poor light.",
)

# Tokens: more than the attention window of known models with local attention, which is 128.
LONGEST_ITEM = 192
# Tokens: at least the number of positions of common models, to find code that cannot take longer sequences.
LONG_BATCH = 512

_STRIDE = 7919  # a prime: ids of adjacent tokens are far apart, as in text


def check_items(model_info: ModelInfo) -> list[Item]:
    """The check texts and of a long one, longest first, truncated to what the model takes."""
    tokenizer = Tokenizer.from_file(model_info.tokenizer_path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(model_info.max_length, LONGEST_ITEM))
    texts = [*CHECK_TEXTS, " ".join(CHECK_TEXTS * 3)]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=model_info.special_tokens)
    items = [Item(_masked(np.array(encoding.ids, dtype=np.int32), model_info)) for encoding in encodings]
    return sorted(items, key=len, reverse=True)


def _masked(ids: TokenIds, model_info: ModelInfo) -> TokenIds:
    """The ids with one in the middle replaced by the mask token, if the model fills masks."""
    if model_info.masks is not None:
        ids[len(ids) // 2] = model_info.masks.mask_id
    return ids


def check_batches(items: Sequence[Item], max_length: int) -> tuple[list[int], ...]:
    """Batches to compare, as indices of ``items``, longest item first: all of them; a batch with repetitions that has
    more tokens than the model has positions; and a short item alone."""
    return list(range(len(items))), _long_batch(items, max_length), [len(items) - 2]


def _long_batch(items: Sequence[Item], max_length: int) -> list[int]:
    indices: list[int] = []
    tokens, wanted = 0, min(max_length, LONG_BATCH) + 1
    while tokens < wanted:
        indices.append(len(indices) % len(items))
        tokens += len(items[indices[-1]])
    return sorted(indices)


def synthetic_batch(lengths: Sequence[int], model_info: ModelInfo) -> ItemBatch:
    """A batch of items of these lengths, longest first, with ``synthetic_ids``."""
    return ItemBatch(synthetic_ids(sum(lengths), model_info), lengths)


def synthetic_ids(tokens: int, model_info: ModelInfo) -> TokenIds:
    """Token ids spread over the vocabulary, without the padding id."""
    spread = np.arange(tokens, dtype=np.int64) * _STRIDE % model_info.vocab_size
    spread[spread == model_info.pad_id] = (model_info.pad_id + 1) % model_info.vocab_size
    return spread.astype(np.int32)
