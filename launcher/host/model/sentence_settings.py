"""Reads ``config_sentence_transformers.json``: prompts, the truncation of vectors, the class that saved the model.

Separate from ``sentence_files`` because these settings concern the whole model, not one of its modules. The reference
is sentence-transformers 6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.core.tasks.prompts import STANDARD_PROMPTS
from launcher.host.model.json_files import Json, ModelErrors, read_object

SETTINGS = "config_sentence_transformers.json"
MODEL_TYPES = ("SentenceTransformer", "CrossEncoder", "SparseEncoder")

# Of a Python package: numbers, and what PEP 440 allows after them.
_SUFFIX = r"([-_.]?(a|b|c|rc|alpha|beta|pre|preview|post|rev|r|dev)[-_.]?\d*)*"
VERSION = re.compile(rf"\s*v?\d+(\.\d+)*{_SUFFIX}(\+[\w.-]+)?\s*", re.IGNORECASE)
# Keys with any value.
KEYS = frozenset(
    {
        "__version__",  # the versions that saved the model; the library only warns
        "requirements",  # versions of packages that are checked, not used
        "model_type",  # implemented
        "prompts",  # implemented
        "default_prompt_name",  # implemented
        "truncate_dim",  # implemented
        "similarity_fn_name",  # how a client compares vectors
        "keep_in_fp32_modules",  # of a model in half precision; --dtype sets the precision
        "activation_fn",  # implemented for cross-encoders; the others do not read it
        "max_active_dims",  # implemented for sparse encoders; the others do not read it
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """``kind`` is the class that saved the model. ``prompts`` are texts by name; ``default_prompt`` is prepended if a
    caller does not choose. Vectors are cut to ``truncate_dim`` values. ``activation`` is the dotted path of the
    activation of a cross-encoder. The vectors of a sparse encoder have at most ``max_active_dims`` values."""

    kind: str = "SentenceTransformer"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    truncate_dim: int | None = None
    activation: str | None = None
    max_active_dims: int | None = None


def read_settings(path: Path, refuse: ModelErrors) -> Settings:
    """The settings in the file ``path``, or the defaults without it. Raises ``UsageError`` for what is not
    supported."""
    settings = read_object(path, refuse) if path.is_file() else {}
    for key, value in settings.items():
        if key not in KEYS and value is not None:
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be null or absent")
    _check_version(path, settings, refuse)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind not in MODEL_TYPES:
        raise refuse(
            f"{path} sets model_type to {kind!r}, which is not supported; it must be one of {', '.join(MODEL_TYPES)}"
        )
    prompts = _prompts(path, settings, refuse)
    return Settings(
        kind=kind,
        prompts=prompts,
        default_prompt=_default_prompt(path, settings, prompts, refuse),
        truncate_dim=_dimensions(path, settings, "truncate_dim", refuse) if kind == "SentenceTransformer" else None,
        activation=settings.get("activation_fn") if kind == "CrossEncoder" else None,
        max_active_dims=_dimensions(path, settings, "max_active_dims", refuse) if kind == "SparseEncoder" else None,
    )


def _check_version(path: Path, settings: Json, refuse: ModelErrors) -> None:
    """The library compares the version that saved the model with its own, and fails if it cannot."""
    versions = settings.get("__version__", {})
    if not isinstance(versions, dict):
        raise refuse(f"{path} sets __version__ to {versions!r}, but it must be an object of packages and versions")
    version = versions.get("sentence_transformers", "0")
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise refuse(f"{path} sets __version__.sentence_transformers to {version!r}, but it must be a version")


def _prompts(path: Path, settings: Json, refuse: ModelErrors) -> dict[str, str]:
    prompts = settings.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise refuse(f"{path} sets prompts to {prompts!r}, but they must be an object of names and texts")
    return {name: text or "" for name, text in prompts.items()}


def _default_prompt(path: Path, settings: Json, prompts: Mapping[str, str], refuse: ModelErrors) -> str:
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    known = {**STANDARD_PROMPTS, **prompts}
    if name not in known:
        names = ", ".join(map(repr, known))
        raise refuse(f"{path} sets default_prompt_name to {name!r}; it must be one of its prompts ({names}) or null")
    return known[name]


def _dimensions(path: Path, settings: Json, key: str, refuse: ModelErrors) -> int | None:
    dimension = settings.get(key)
    if dimension is not None and (isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1):
        raise refuse(f"{path} sets {key} to {dimension!r}, but it must be a positive integer or null")
    return dimension
