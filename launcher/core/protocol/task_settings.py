"""What single tasks need to know of a model besides the common metadata; parts of ``ModelInfo``.

Separate so that a task adds a type here, not fields to all models. Read on the host, used by front and workers.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# A worker returns this many of the most probable tokens for each mask token; a request may ask for fewer.
MAX_TOP_K = 100


class SparsePooling(msgspec.Struct, frozen=True):
    """How a sparse embedder weights the tokens of its vocabulary.

    ``source`` ``logits``: from the logits of a masked language model, as ``SpladePooling`` of sentence-transformers:
    ``activation`` of all tokens, then ``pooling`` over them. ``source`` ``head``: from a linear layer in the file
    ``head``, one weight for each token of the text, as BGE-M3; the highest for each token id counts, and
    ``excluded_ids`` (special tokens) have none. ``max_active`` is the maximum number of weights, the highest ones.
    """

    source: Literal["logits", "head"] = "logits"
    pooling: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"
    max_active: int | None = None
    head: str = ""
    excluded_ids: tuple[int, ...] = ()


class TokenVectors(msgspec.Struct, frozen=True):
    """The vectors of single tokens: the hidden states or, with ``head``, their projection by a linear layer in this
    file, normalized, as BGE-M3. ``width`` is their size. ``skip_first``: the first token has no vector.
    """

    width: int
    head: str = ""
    skip_first: bool = False


class AnswerTokens(msgspec.Struct, frozen=True):
    """The id of the token that stands for no answer, if the tokenizer has one."""

    cls_id: int | None


class MaskTokens(msgspec.Struct, frozen=True):
    """The ids of the mask token and of padding, and whether decoded texts lose the spaces before punctuation
    (``clean_up_tokenization_spaces``)."""

    mask_id: int
    pad_id: int | None = None
    clean_up: bool = False
