"""Groups consecutive tokens of one entity, like transformers' aggregation strategy ``simple``.

Separate from HTTP so that the rules can be read and tested in isolation. An entity is a range of tokens here; texts and
character offsets do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The label of tokens that belong to no entity.
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Entity:
    """The tokens ``first`` to ``last`` (inclusive) and the mean of their scores; ``label`` has no prefix."""

    label: str
    score: float
    first: int
    last: int


def split_label(label: str) -> tuple[bool, str]:
    """Whether a token with this label always starts a new entity, and the name of the entity.

    ``B-X`` starts an ``X``, ``I-X`` continues one; a label without a prefix continues an entity of the same label.
    """
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def join(tokens: Sequence[int], labels: Sequence[str], scores: Sequence[float]) -> Iterator[Entity]:
    """The entities of an item, in order.

    ``tokens`` holds the positions of its tokens, ascending; ``labels`` and ``scores`` are parallel to it. A token
    labelled ``O`` ends an entity, and so does a gap in the positions.
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
