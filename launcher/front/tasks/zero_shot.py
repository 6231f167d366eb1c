"""Zero-shot classification: a hypothesis for each label, and the scores of labels from the logits of entailment.

Separate from HTTP because the Python API returns the same. The reference is ``ZeroShotClassificationPipeline`` of
transformers 5.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from launcher.errors import RequestError
from launcher.front.pairs import Pair
from launcher.front.request_results import Vectors
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tokenizer import MAX_REPEATED_CHARACTERS

DEFAULT_TEMPLATE = "This example is {}."
MAX_TEMPLATE_CHARACTERS = 10_000


def parse_labels(labels: str | Sequence[str], *, field: str = "candidate_labels") -> list[str]:
    """The labels of a request; a single ``str`` has them separated by commas. Raises ``RequestError``."""
    found = [label.strip() for label in labels.split(",")] if isinstance(labels, str) else list(labels)
    if isinstance(labels, str):
        found = [label for label in found if label]
    if not found:
        raise RequestError(f"'{field}' has no labels; give at least one", code="empty_input", param=field)
    return found


def hypotheses(labels: Sequence[str], template: str) -> list[str]:
    """The hypothesis of each label: the template with the label in place of ``{}``. Raises ``RequestError``.

    Not ``str.format`` as in transformers, because the template comes from a client: a format specification can ask for
    a text of any length.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise _bad_template(template, f"it has {len(template)} characters; the limit is {MAX_TEMPLATE_CHARACTERS}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _bad_template(template, str(error)) from error
    fields = [field for _, field, _, _ in parts if field is not None]
    if not fields:
        raise _bad_template(template, "it has no place for the label")
    if fields != [""] and set(fields) != {"0"}:
        raise _bad_template(template, f"it has the fields {', '.join(f'{{{field}}}' for field in fields)}")
    if any(specification or conversion for _, _, specification, conversion in parts):
        raise _bad_template(template, "format specifications are not supported")
    characters = len(labels) * len(template) + len(fields) * sum(map(len, labels))
    if characters > MAX_REPEATED_CHARACTERS:
        raise RequestError(
            f"the hypotheses of all labels have up to {characters} characters; the limit is {MAX_REPEATED_CHARACTERS}; "
            "use a shorter template, or shorter labels",
            status=413,
            code="too_many_characters",
            param="hypothesis_template",
        )
    return ["".join(text + (label if field is not None else "") for text, field, _, _ in parts) for label in labels]


def _bad_template(template: str, reason: str) -> RequestError:
    return RequestError(
        f"'hypothesis_template' is {template[:100]!r}: {reason}; it must have one {{}} for the label",
        code="invalid_template",
        param="hypothesis_template",
    )


def premise_pairs(texts: Sequence[str], labels: Sequence[str], template: str) -> list[Pair]:
    """Each text with the hypothesis of each label. Raises ``RequestError``."""
    made = hypotheses(labels, template)
    return [(text, hypothesis) for text in texts for hypothesis in made]


def zero_shot_labels(logits: Vectors, labels: Sequence[str], entailment: int, *, multi_label: bool) -> list[LabelScore]:
    """The labels of one text with their scores, best first; equal scores in the reverse order of the labels.

    ``logits`` is labels × labels of the model, and ``entailment`` the index of that label of the model. The scores of
    all labels sum to 1, or with ``multi_label`` each is between 0 and 1: the probability of entailment, not of
    contradiction.
    """
    if multi_label or len(labels) == 1:
        contradiction = -1 if entailment == 0 else 0
        scores = _softmax(logits[:, [contradiction, entailment]], axis=1)[:, 1]
    else:
        scores = _softmax(logits[:, entailment], axis=0)
    # The shortest decimal that reads back as the same float32.
    order = np.argsort(scores, kind="stable")[::-1].tolist()
    return [LabelScore(labels[index], float(str(scores[index]))) for index in order]


def _softmax(values: Vectors, axis: int) -> Vectors:
    exact = values.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=axis, keepdims=True))
    softmax: Vectors = (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)
    return softmax


def truncated_texts(truncated: Sequence[int], labels: int) -> tuple[int, ...]:
    """The indices of the texts of which a pair was truncated, from the indices of the pairs."""
    return tuple(sorted({index // labels for index in truncated}))
