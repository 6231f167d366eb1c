"""Inputs that a worker makes itself: texts to check results with, and token ids to time batches with.

The check texts are real texts of several lengths, because random ids give hidden states unlike those of language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tokenizers import Encoding, Tokenizer

from launcher.core.protocol.model_info import FLOAT32_BYTES, ModelInfo
from launcher.worker.interfaces import Item, ItemBatch, ModelError, TokenIds, one_line

CHECK_TEXTS = (
    "yes",
    "Where is the nearest station?",
    "The harvest was late that year, and the barns stood half empty until the first frost.",
    "Error 1604: the connection to 10.0.0.7:5432 was lost after 3 attempts.",
    "Invoices are due within thirty days of receipt; a fee of 2 % is added for each month after that date.",
    "She had read the letter twice before she noticed that the second page was in a different hand, smaller and "
    "slanted to the left, as though someone had finished it in a hurry, at night, by poor light.",
)

LONGEST_ITEM = 192  # tokens, for models without attention windows
BEYOND_WINDOW = 32  # tokens: a check item is this much longer than the longest attention window
# Multiplications of one check item, at most: a second or two on a few cores.
MAX_MULTIPLICATIONS = 10**12
# Tokens: at least the number of positions of common models, to find code that cannot take longer sequences.
LONG_BATCH = 512

MAX_SPECIAL_TOKENS = 12  # of the tokenizer, in one check item

_STRIDE = 7919  # a prime: ids of adjacent tokens are far apart, as in text


def check_items(model_info: ModelInfo, windows: Sequence[int] = ()) -> list[Item]:
    """The check texts, a long one, one with special tokens in it and, if the task takes them, pairs; longest first,
    truncated to what the model takes.

    The long one has more tokens than the largest of ``windows``, the sizes of the model's attention windows, as far as
    one such item takes no more than ``MAX_MULTIPLICATIONS``. Raises ``ModelError`` if the tokenizer fails.
    """
    tokenizer = Tokenizer.from_file(model_info.tokenizer_path)
    tokenizer.no_padding()
    longest = min(model_info.max_length, _longest_item(model_info, windows))
    tokenizer.enable_truncation(longest)
    long_text = " ".join(CHECK_TEXTS * 3)
    repeats = 1 + longest // LONGEST_ITEM
    texts: list[str | tuple[str, str]] = [*CHECK_TEXTS, " ".join([long_text] * repeats)]
    if model_info.takes_pairs:
        texts += zip(CHECK_TEXTS[1::2], CHECK_TEXTS[::2], strict=True)
    try:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=model_info.special_tokens)
    except Exception as error:  # the Rust library raises plain Exception for text that its model cannot encode
        raise ModelError(
            f"{model_info.requested}: the tokenizer {model_info.tokenizer_path}, with the settings of transformers, "
            f"cannot encode ordinary texts: {one_line(error)}"
        ) from error
    items = [_item(encoding, model_info) for encoding in encodings]
    items.append(Item(_with_special_tokens(items[2].ids, tokenizer, model_info)))
    if model_info.masks is not None:
        items = [_with_mask(item, model_info.masks.mask_id) for item in items]
    return sorted(items, key=len, reverse=True)


def _with_mask(item: Item, mask_id: int) -> Item:
    """``item`` with the mask token in the middle: a model that fills masks has no result without one."""
    ids = item.ids.copy()
    ids[len(ids) // 2] = mask_id
    return replace(item, ids=ids)


def _item(encoding: Encoding, model_info: ModelInfo) -> Item:
    """The item that the front would send. Pairs whose token types the model lacks are refused there."""
    typed = model_info.sends_token_types and 0 < max(encoding.type_ids, default=0) < model_info.token_types
    type_ids = np.array(encoding.type_ids, dtype=np.uint8) if typed else None
    return Item(np.array(encoding.ids, dtype=np.int32), type_ids)


def _longest_item(model_info: ModelInfo, windows: Sequence[int]) -> int:
    parameters = max(1, model_info.weight_bytes // FLOAT32_BYTES)
    reached = [window for window in windows if (window + BEYOND_WINDOW) * parameters <= MAX_MULTIPLICATIONS]
    return max(LONGEST_ITEM, max(reached, default=0) + BEYOND_WINDOW)


def _with_special_tokens(ids: TokenIds, tokenizer: Tokenizer, model_info: ModelInfo) -> TokenIds:
    """``ids`` with the padding id and the tokenizer's special tokens between them, as in a text that contains their
    names. Some models count or skip such tokens."""
    added = tokenizer.get_added_tokens_decoder()
    special = [index for index, token in sorted(added.items()) if token.special and index < model_info.vocab_size]
    inserted = [model_info.pad_id, *special[:MAX_SPECIAL_TOKENS], model_info.pad_id]
    places = 1 + np.arange(len(inserted)) * max(1, len(ids) - 1) // len(inserted)
    result: TokenIds = np.insert(ids, np.minimum(places, len(ids)), np.array(inserted, dtype=np.int32))
    return result[: model_info.max_length]


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
