"""Groups consecutive tokens or words of one entity: as transformers' token-classification pipeline, or by BIOES labels.

Separate from HTTP so that the rules can be read and tested in isolation. An entity is a range of tokens here; texts and
character offsets do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

# The label of tokens that belong to no entity.
OUTSIDE = "O"

Aggregation = Literal["none", "simple", "first", "average", "max", "bioes"]
"""``none``: every token. The next four are the strategies of the pipeline: ``simple`` groups tokens; ``first``,
``average`` and ``max`` give each word one label (of its first token, of the mean of its scores, or of its highest
score) and group words. ``bioes`` groups tokens by the prefixes of BIOES, BILOU and BMES.
"""
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
WORD_AGGREGATIONS = frozenset({"first", "average", "max"})

# The prefixes of BIOES, BILOU and BMES, by what they say of a token.
_FIRST, _LAST = frozenset("BSU"), frozenset("ELSU")
_PREFIXES = frozenset("BIELSUM")
_BEYOND_IOB = frozenset("ELSUM")


@dataclass(frozen=True, slots=True)
class Entity:
    """The tokens ``first`` to ``last`` (inclusive) and the mean of their scores; ``label`` has no prefix."""

    label: str
    score: float
    first: int
    last: int


def has_bioes_labels(labels: Sequence[str]) -> bool:
    """Whether all labels except ``O`` have a prefix of BIOES, BILOU or BMES, and some one that IOB does not have."""
    prefixes = {_prefix(label) for label in labels if label != OUTSIDE}
    return None not in prefixes and not prefixes.isdisjoint(_BEYOND_IOB)


def default_aggregation(labels: Sequence[str]) -> Aggregation:
    """``bioes`` for labels with its prefixes, which the pipeline does not know, otherwise ``simple``."""
    return "bioes" if has_bioes_labels(labels) else "simple"


def is_outside(label: str) -> bool:
    """Whether a token with this label is in no entity."""
    return label == OUTSIDE or split_label(label)[1] == OUTSIDE


def split_label(label: str) -> tuple[bool, str]:
    """Whether a token with this label always starts a new entity, and the name that continues it, as in the pipeline.

    ``B-X`` starts an ``X``, ``I-X`` continues one; a label without these prefixes continues an entity of the same
    label.
    """
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def join(tokens: Sequence[int], labels: Sequence[str], scores: Sequence[float]) -> Iterator[Entity]:
    """The entities of an item, in order, as the pipeline groups them.

    ``tokens`` holds the positions of its tokens, ascending; ``labels`` and ``scores`` are parallel to it. A token
    outside of entities ends an entity, and so does a gap in the positions. An entity is named after what follows the
    first hyphen in the label of its first token, whatever the prefix.
    """
    group: list[float] = []
    first, continued, name = -1, OUTSIDE, ""
    for token, label, score in zip(tokens, labels, scores, strict=True):
        begins, own = split_label(label)
        if group and own == continued and not begins and token == first + len(group):
            group.append(score)
            continue
        yield from _entity(name, group, first)
        group, first, continued, name = [score], token, own, label.partition("-")[2] if "-" in label else label
    yield from _entity(name, group, first)


def join_bioes(tokens: Sequence[int], labels: Sequence[str], scores: Sequence[float]) -> Iterator[Entity]:
    """The entities of an item, in order, by BIOES (also BILOU and BMES); arguments as of ``join``.

    ``B-X`` starts an ``X``, ``I-X`` and ``M-X`` continue it, ``E-X`` and ``L-X`` end it, ``S-X`` and ``U-X`` are one of
    a single token. A token that continues or ends an entity of another name, or none, starts one.
    """
    group: list[float] = []
    first, name, ended = -1, "", False
    for token, label, score in zip(tokens, labels, scores, strict=True):
        prefix = _prefix(label)
        own = label[2:] if prefix else label
        if not group or ended or prefix in _FIRST or own != name or token != first + len(group):
            yield from _entity(name, group, first)
            group, first, name = [], token, own
        group.append(score)
        ended = prefix in _LAST
    yield from _entity(name, group, first)


def _entity(name: str, scores: Sequence[float], first: int) -> Iterator[Entity]:
    if scores and name != OUTSIDE:
        yield Entity(name, sum(scores) / len(scores), first, first + len(scores) - 1)


def _prefix(label: str) -> str | None:
    return label[0] if label[1:2] == "-" and label[0] in _PREFIXES else None
