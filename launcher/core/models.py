"""What the launcher knows of a model before it loads it: its card.

A card is made once, on the host, from the model's files (``host.models``) and travels to front and workers,
so that pooling, limits and labels are read in one place.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Task = Literal["embed", "classify"]
Pooling = Literal["mean", "cls", "max"]


class ModelCard(msgspec.Struct, frozen=True):
    """Facts of one model.

    ``name`` is what clients call it, ``asked`` what the user gave to ``--model``. ``folder`` holds config and
    tokenizer; ``shape`` is set for ``random:`` models, which have no weights on disk. ``max_length`` is in
    tokens, special tokens included. ``weight_bytes`` is the size in fp32 of all parameters.
    """

    name: str
    asked: str
    task: Task
    folder: str
    shape: str | None
    architecture: str
    hidden_size: int
    layers: int
    vocab_size: int
    max_length: int
    pad_id: int
    pooling: Pooling
    normalize: bool
    labels: tuple[str, ...]
    multi_label: bool
    weight_bytes: int
    prompts: dict[str, str] = {}
