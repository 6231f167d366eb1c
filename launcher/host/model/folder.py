"""Reads a model folder into a ``ModelInfo``: config, weights, tokenizer and the files of sentence-transformers.

Separate from ``resolve`` because folders from all sources are read in the same way. The files of sentence-transformers
are read in ``sentence_files``, those of the tokenizer in ``tokenizer_files``. Only headers and JSON are read, no
weights. Anything in these files that cannot be done exactly is refused, because an approximation gives wrong vectors.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.protocol.model_info import FLOAT32_BYTES, ModelInfo
from launcher.errors import UsageError
from launcher.host.model import tokenizer_files
from launcher.host.model.architectures import (
    POSITIONS_AFTER_PADDING,
    batching_of,
    check_own_code,
    check_positions,
    read_architecture,
    runs_own_code,
)
from launcher.host.model.encoders import CHECKS, HIDDEN_SIZE, LAYERS, POSITIONS, with_defaults
from launcher.host.model.heads import labels_of, scores_of, task_of
from launcher.host.model.json_files import Json, ModelErrors, inventory, read_object
from launcher.host.model.sentence_files import MODULES, SentenceFiles, read_sentence_files
from launcher.options import ModelOptions
from launcher.options.choices import Task

NO_LIMIT = 1_000_000  # tokenizers without a limit state 10**30

FLOAT_DTYPES = ("F", "BF")  # of a safetensors header: F64, F32, F16, BF16, F8_E4M3 …
MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit
GIT_LFS_POINTER = b"version https://git-lfs"


def read_model_info(folder: Path, options: ModelOptions, *, name: str) -> ModelInfo:
    """The metadata of the model in ``folder``. Raises ``UsageError`` if it cannot be served."""
    refuse = ModelErrors(options.model)
    sentence = read_sentence_files(folder, refuse)
    config = read_object(sentence.folder / "config.json", refuse)
    architecture = read_architecture(config, options, refuse)
    check_positions(config, refuse)
    _check_adapter(sentence.folder, refuse)
    task = task_of(architecture, config, sentence, options, refuse)
    check_own_code(config, task, options, refuse)
    own_code = runs_own_code(config, task, options)
    config = config if own_code else with_defaults(config)
    weight_bytes = _weight_bytes(sentence.folder, config, refuse)
    tokenizer = tokenizer_files.locate(sentence.folder, folder, config, refuse)
    vocab_size = _number(config, refuse, "vocab_size")
    if tokenizer.largest_id >= vocab_size:
        raise refuse(
            f"{tokenizer.path} has token ids up to {tokenizer.largest_id}, but config.json has a vocab_size of "
            f"{vocab_size}; the tokenizer belongs to another model, or the model was not resized after adding tokens"
        )
    if sentence.lower_case_file and not tokenizer.lower_cases:
        raise refuse(
            f"{sentence.lower_case_file} requests lower-casing (do_lower_case true), but tokenizer.json does not "
            "lower-case, and this is not supported"
        )
    if task == "embed" and sentence.kind and sentence.pooling is None:
        raise refuse(
            f"{folder / MODULES} lists no Pooling module, so the model has no embeddings of texts; add one to a copy "
            "of the folder"
        )
    pad_id = _pad_id(config, tokenizer.pad_id)
    max_length = _max_length(config, sentence, tokenizer.max_length, pad_id, options, refuse)
    if not own_code and (check := CHECKS.get(str(config.get("model_type")))):
        check(config, max_length, refuse)
    return ModelInfo(
        name=name,
        asked=options.model,
        task=task,
        folder=str(sentence.folder),
        shape=None,
        architecture=architecture,
        hidden_size=_number(config, refuse, *HIDDEN_SIZE),
        layers=_number(config, refuse, *LAYERS),
        vocab_size=vocab_size,
        max_length=max_length,
        pad_id=pad_id,
        pooling=sentence.pooling or "mean",
        normalize=sentence.normalize,
        labels=() if task == "embed" else labels_of(config),
        weight_bytes=weight_bytes,
        tokenizer_file=str(tokenizer.path),
        scores=scores_of(task, config, sentence, refuse),
        batching=batching_of(config, task, options),
        notes=_notes(task, sentence, tokenizer),
    )


def _notes(task: Task, sentence: SentenceFiles, tokenizer: tokenizer_files.TokenizerFacts) -> tuple[str, ...]:
    notes = []
    if task == "embed" and not sentence.kind:
        notes.append("the model has no sentence-transformers files: using mean pooling without normalization")
    if task == "embed" and sentence.prompts:
        names = ", ".join(sorted(sentence.prompts))
        notes.append(f"the model defines prompts ({names}); they are not added, so include them in the texts")
    if tokenizer.converted:
        notes.append(f"{tokenizer.converted}: using the one that transformers builds, {tokenizer.path}")
    return tuple(notes)


def _number(config: Json, refuse: ModelErrors, *keys: str) -> int:
    """The value of the first of ``keys`` that is a positive integer in config.json."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise refuse(f"config.json has no {keys[0]}; it must be a positive integer")


def _pad_id(config: Json, of_tokenizer: int | None) -> int:
    """The id of the padding token. Defaults to 0: padding is masked, so any id of the vocabulary works."""
    stated = config.get("pad_token_id")
    if isinstance(stated, int) and stated >= 0:
        return stated
    return of_tokenizer or 0


def _check_adapter(folder: Path, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` for an adapter."""
    if (folder / "adapter_config.json").is_file():
        raise refuse(
            f"{folder / 'adapter_config.json'} describes a PEFT adapter, which transformers would add to the weights "
            "and which is not supported; merge it (merge_and_unload) and save the model without it"
        )


# --- maximum length


def _max_length(
    config: Json,
    sentence: SentenceFiles,
    of_tokenizer: int | None,
    pad_id: int,
    options: ModelOptions,
    refuse: ModelErrors,
) -> int:
    """The limit in the files, reduced to ``--max-length``.

    As in sentence-transformers, ``max_seq_length`` replaces ``model_max_length`` of the tokenizer, smaller or larger.
    The position table limits both.
    """
    stated = of_tokenizer if sentence.max_length is None else sentence.max_length
    limits = [stated] if stated is not None and stated < NO_LIMIT else []
    positions = next((config[key] for key in POSITIONS if config.get(key) is not None), None)
    if isinstance(positions, int) and positions > 0:
        after_padding = pad_id + 1 if config.get("model_type") in POSITIONS_AFTER_PADDING else 0
        limits.append(positions - after_padding)
    if not limits and options.max_length is None:
        raise refuse("none of its files states the maximum number of tokens; set --max-length")
    return lower_limit(min(limits, default=NO_LIMIT), options)


def lower_limit(limit: int, options: ModelOptions) -> int:
    """``limit`` reduced to ``--max-length``. Raises ``UsageError`` if that is larger, or too small for any text."""
    asked = options.max_length
    if asked is None:
        return limit
    if asked > limit:
        raise UsageError(f"--max-length {asked}: {options.model} accepts at most {limit} tokens")
    if asked < 3:
        raise UsageError(f"--max-length {asked}: must be at least 3 (two special tokens and one token of text)")
    return asked


# --- weights


def _weight_bytes(folder: Path, config: Json, refuse: ModelErrors) -> int:
    """The size of all parameters in fp32, from the headers of the weight files."""
    files = weight_files(folder, refuse)
    if not files:
        raise refuse(
            f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor shards of them; "
            f"{inventory(folder)}"
        )
    if files[0].suffix == ".safetensors":
        return sum(_safetensors_parameters(path, refuse) for path in files) * FLOAT32_BYTES
    # Pickles are not opened here. Their size is that of the parameters in the saved dtype.
    saved = str(config.get("dtype", config.get("torch_dtype", "float32")))
    return sum(path.stat().st_size for path in files) * (2 if "16" in saved else 1)


def weight_files(folder: Path, refuse: ModelErrors) -> list[Path]:
    """The weight files, preferring safetensors; empty if there are none. Raises ``UsageError`` if shards are
    missing."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            parts = sorted(set(read_object(index, refuse).get("weight_map", {}).values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing or not parts:
                raise refuse(f"{index} lists {len(parts)} files, of which {len(missing)} are missing: {missing[:3]}")
            return [folder / part for part in parts]
    return []


def _safetensors_parameters(path: Path, refuse: ModelErrors) -> int:
    """The number of floating-point values in a safetensors file, from its header (8 bytes of size, then JSON)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if GIT_LFS_POINTER.startswith(start) and start:
            raise refuse(f"{path} is a Git LFS pointer, not the weights; run git lfs pull in {path.parent}")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise refuse(f"{path} is not a complete safetensors file: it has {size} bytes, and a header of {length}")
        header = file.read(length)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, Any])
        entries = [value for key, value in tensors.items() if key != "__metadata__"]
        end = max((value["data_offsets"][1] for value in entries), default=0)
        if 8 + length + end > size:
            raise refuse(f"{path} is truncated: {size} of {8 + length + end} bytes")
        return sum(prod(value["shape"]) for value in entries if value["dtype"].startswith(FLOAT_DTYPES))
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError) as error:
        raise refuse(f"{path} has an invalid safetensors header: {error}") from error
