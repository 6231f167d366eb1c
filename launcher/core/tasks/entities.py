"""Joins neighbouring tokens of one entity, by the rules of the usual pipelines (transformers' strategy ``simple``).

Separate from HTTP so that the rules can be read and tried alone. Texts and offsets must not enter: an entity is a
range of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# What taggers call a token that belongs to no entity.
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Entity:
    """The tokens ``first`` to ``last`` (both included) and the mean of their scores; ``label`` has no prefix."""

    label: str
    score: float
    first: int
    last: int


def split_label(label: str) -> tuple[bool, str]:
    """Whether a token with this label begins an entity in any case, and what the entity is called.

    ``B-X`` begins an ``X``, ``I-X`` goes on with one; a label without these prefixes goes on with its like.
    """
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def join(tokens: Sequence[int], labels: Sequence[str], scores: Sequence[float]) -> Iterator[Entity]:
    """The entities of an item, in order.

    ``tokens`` are the places of its tokens, ascending, ``labels`` and ``scores`` theirs. Tokens labelled ``O`` end an
    entity, as do places that are left out.
    """
    first = last = -1
    name, total = OUTSIDE, 0.0
    for token, label, score in zip(tokens, labels, scores, strict=True):
        begins, own = split_label(label)
        if own == name and not begins and token == last + 1:
            last, total = token, total + score
            continue
        if name != OUTSIDE:
            yield Entity(name, total / (last - first + 1), first, last)
        first = last = token
        name, total = own, score
    if name != OUTSIDE:
        yield Entity(name, total / (last - first + 1), first, last)
