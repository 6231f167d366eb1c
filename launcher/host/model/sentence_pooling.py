"""Reads the config of a Pooling module of sentence-transformers, in its old form (flags) and its newer one (names).

Separate from ``sentence_modules`` because the two forms have rules of their own. The reference is sentence-transformers
6; how the modes are computed is in ``worker.tasks.pooling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from launcher.core.protocol.embedding_modules import PoolingMode
from launcher.host.model.json_files import Json, ModelErrors, read_object

# Two names of one key: the number of values of a token embedding.
DIMENSION_KEYS = ("embedding_dimension", "word_embedding_dimension")
KEYS = frozenset({*DIMENSION_KEYS, "pooling_mode", "include_prompt"})
# Flags of versions before 5.4, in the order in which the library concatenates them.
MODE_FLAGS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class PoolingFile:
    """The ``modes`` of the config at ``path``, in the order in which their vectors are concatenated.

    ``dimension`` is the stated number of values of a token embedding."""

    path: Path
    modes: tuple[PoolingMode, ...]
    include_prompt: bool
    dimension: int


def read_pooling(path: Path, refuse: ModelErrors) -> PoolingFile:
    """The config of a Pooling module. Raises ``UsageError`` for a key or a mode that is not known."""
    config = read_object(path, refuse)
    for key, value in config.items():
        if key not in KEYS and key not in MODE_FLAGS and value is not None:
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be absent")
    include_prompt = config.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise refuse(f"{path} sets include_prompt to {include_prompt!r}, but it must be true or false")
    return PoolingFile(path, _modes(path, config, refuse), include_prompt, _dimension(path, config, refuse))


def _modes(path: Path, config: Json, refuse: ModelErrors) -> tuple[PoolingMode, ...]:
    if not config:
        raise refuse(f"{path} is empty, and sentence-transformers cannot load it; it must have a pooling_mode")
    if "pooling_mode" not in config:
        # Without any mode, sentence-transformers uses the mean.
        return tuple(mode for flag, mode in MODE_FLAGS.items() if config.get(flag)) or ("mean",)
    named = config["pooling_mode"]
    modes = named if isinstance(named, list) and named else [named]
    known = get_args(PoolingMode)
    if not all(mode in known for mode in modes):
        requested = " + ".join(map(str, modes))
        raise refuse(f"{path} requests the pooling {requested}; it must be one or several of {', '.join(known)}")
    return tuple(modes)


def _dimension(path: Path, config: Json, refuse: ModelErrors) -> int:
    stated = [config[key] for key in DIMENSION_KEYS if config.get(key) is not None]
    if not stated:
        raise refuse(f"{path} has no {DIMENSION_KEYS[0]}; it must be the number of values of a token embedding")
    dimension, *others = stated
    if isinstance(dimension, bool) or not isinstance(dimension, int):
        raise refuse(f"{path} sets the {DIMENSION_KEYS[0]} to {dimension!r}, but it must be a positive integer")
    if others and others != [dimension]:
        raise refuse(f"{path} sets {' and '.join(DIMENSION_KEYS)} to different values; it must have one of them")
    return dimension
