"""Check sequences and their measures: what a model is compared by, padded and in another dtype, when it is loaded.

Real texts of several lengths, because random ids give hidden states unlike those of a language.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from tokenizers import Tokenizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.backends import Ids, Values

CHECK_TEXTS = (
    "yes",
    "Where is the nearest station?",
    "The harvest was late that year, and the barns stood half empty until the first frost.",
    "Error 1604: the connection to 10.0.0.7:5432 was lost after 3 attempts.",
    "Invoices are due within thirty days of receipt; a fee of 2 % is added for each month after that date.",
    "She had read the letter twice before she noticed that the second page was in a different hand, smaller and "
    "slanted to the left, as though someone had finished it in a hurry, at night, by poor light.",
)


# Tokens: longer than the window of models whose tokens see only their neighbours, 128 in what is known.
LONGEST_ITEM = 192
# Tokens: at least as many as the positions of common models, for code that has no room for more in a line.
LONG_LINE = 512


def check_items(model_info: ModelInfo) -> list[Ids]:
    """Token ids of the check texts and of a long one, longest first, cut to what the model takes."""
    tokenizer = Tokenizer.from_file(model_info.tokenizer_path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(model_info.max_length, LONGEST_ITEM))
    texts = [*CHECK_TEXTS, " ".join(CHECK_TEXTS * 3)]
    items = [np.array(encoding.ids, dtype=np.int32) for encoding in tokenizer.encode_batch(texts)]
    return sorted(items, key=len, reverse=True)


def check_lines(items: Sequence[Ids], max_length: int) -> tuple[list[int], ...]:
    """Places in ``items`` of the lines to compare: all, some twice in a line longer than the model's positions, and a
    short one alone. Longest item first."""
    return list(range(len(items))), _long_line(items, max_length), [len(items) - 2]


def _long_line(items: Sequence[Ids], max_length: int) -> list[int]:
    places: list[int] = []
    tokens, wanted = 0, min(max_length, LONG_LINE) + 1
    while tokens < wanted:
        places.append(len(places) % len(items))
        tokens += len(items[places[-1]])
    return sorted(places)


def rows_of(items: Sequence[Ids], places: Sequence[int], model_info: ModelInfo) -> Sequence[int]:
    """Where the results of the items at ``places`` stand among those of all ``items``, row by row."""
    if not model_info.row_per_token:
        return places
    ends = list(accumulate(map(len, items)))
    return [row for place in places for row in range(ends[place] - len(items[place]), ends[place])]


def largest_difference(first: Values, second: Values) -> float:
    """The largest distance between rows of the same place, relative to the first one's length."""
    distances = np.linalg.norm(first - second, axis=1)
    return float(np.max(distances / np.maximum(np.linalg.norm(first, axis=1), 1e-12)))


def lowest_cosine(first: Values, second: Values, items: Sequence[Ids], model_info: ModelInfo) -> float:
    """The lowest cosine between two results of an item, all its rows as one vector; nan when one holds no numbers.

    Not token by token: a token that stands between two labels moves by rounding alone, which says nothing of the
    model. A token of a check item that gets quite another label is still seen, since no item has a thousand.

    Where a row is a single score there is no angle: then it is the cosine of two vectors whose distance is as large,
    in parts of their length, as the largest change is in parts of the largest score.
    """
    if first.shape[1] == 1:
        distance = np.max(np.abs(first - second)) / max(float(np.max(np.abs(first))), 1e-12)
        return float(1 - distance * distance / 2)
    starts = list(accumulate(map(len, items[:-1]), initial=0)) if model_info.row_per_token else range(len(items))

    def products(one: Values, other: Values) -> Values:
        sums: Values = np.add.reduceat(np.sum(one * other, axis=1), starts)
        return sums

    return float(np.min(products(first, second) / np.sqrt(products(first, first) * products(second, second))))


def other_labels(first: Values, second: Values) -> int:
    """How many rows of scores have another best label in ``second``."""
    return int(np.count_nonzero(first.argmax(axis=1) != second.argmax(axis=1)))
