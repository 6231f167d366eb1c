"""Reads a model folder into a ``ModelInfo``: config, weights, tokenizer and the files of sentence-transformers.

Separate from ``resolve`` because folders from all sources are read in the same way. The files of sentence-transformers
are read in ``sentence_files``, those of the tokenizer in ``tokenizer_files``. Only headers and JSON are read, no
weights. Anything in these files that cannot be done exactly is refused, because an approximation gives wrong vectors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.protocol.embedding_modules import EmbeddingModule, Normalize, PoolingMode
from launcher.core.protocol.model_info import FLOAT32_BYTES, ModelInfo, Pooling
from launcher.errors import UsageError
from launcher.host.model import tokenizer_files
from launcher.host.model.architectures import (
    ENCODER_DECODERS,
    POSITIONS_AFTER_PADDING,
    WITHOUT_POSITION_TABLE,
    batching_of,
    check_own_code,
    check_positions,
    read_architecture,
    runs_own_code,
    unused_weights,
)
from launcher.host.model.encoders import CHECKS, HIDDEN_SIZE, LAYERS, TEXT_TOWERS, WITHOUT_BF16, with_defaults
from launcher.host.model.heads import LABEL_TASKS, entailment_of, labels_of, scores_of, task_of
from launcher.host.model.json_files import Json, ModelErrors, read_object
from launcher.host.model.output_heads import ModelFiles, task_settings
from launcher.host.model.router import with_second_route, with_sparse_route
from launcher.host.model.sentence_files import INSTRUCTORS, SentenceFiles, read_sentence_files
from launcher.host.model.sentence_modules import MODULES, ModuleChain, check_widths
from launcher.host.model.sentence_settings import Settings
from launcher.host.model.static_embedding import MAX_LENGTH, read_static
from launcher.host.model.token_types import check_pairs, token_types_of
from launcher.host.model.weights import check_no_head, weight_bytes
from launcher.options import ModelOptions
from launcher.options.choices import Task

NO_LIMIT = 1_000_000  # tokenizers without a limit state 10**30


def read_model_info(folder: Path, options: ModelOptions, *, name: str) -> ModelInfo:
    """The metadata of the model in ``folder``. Raises ``UsageError`` if it cannot be served."""
    refuse = ModelErrors(options.model)
    sentence = read_sentence_files(folder, refuse)
    router, second = sentence.router, sentence.second
    if router is None:
        return _read_route(folder, sentence, options, name)
    if isinstance(router.second, Path):
        return with_sparse_route(_read_route(folder, sentence, options, name), router, router.second, options, refuse)
    assert second is not None, "set for a second route with modules"
    encoders = [route for route in (sentence, second) if not _is_static(route)]
    # A static route stays in fp32 beside an encoder in int8.
    static_options = replace(options, dtype="auto") if encoders and options.dtype == "int8" else options
    infos = [
        _read_route(folder, route, static_options if _is_static(route) else options, name)
        for route in (sentence, second)
    ]
    return with_second_route(infos[0], infos[1], router, options, refuse)


def _is_static(sentence: SentenceFiles) -> bool:
    return sentence.chain is not None and sentence.chain.static


def _read_route(folder: Path, sentence: SentenceFiles, options: ModelOptions, name: str) -> ModelInfo:
    """The metadata of the model in ``folder``, or of one of its routes."""
    refuse = ModelErrors(options.model)
    if sentence.chain is not None and sentence.chain.static:
        return _static_model_info(sentence.chain, sentence, options, name)
    config = read_object(sentence.folder / "config.json", refuse)
    architecture = read_architecture(config, options, refuse, embedder=sentence.kind == "SentenceTransformer")
    check_positions(config, refuse)
    _check_adapter(sentence.folder, refuse)
    task = task_of(architecture, config, sentence, options, refuse)
    check_own_code(config, task, options, refuse)
    dtype_notes = _check_bf16(config, options, refuse)
    if task == "embed" and options.task == "auto" and not sentence.kind and not config.get("architectures"):
        check_no_head(sentence.folder, refuse)
    own_code = runs_own_code(config, task, options)
    config = config if own_code else with_defaults(config)
    features = not own_code and config.get("model_type") in TEXT_TOWERS
    if sentence.chain is not None and sentence.chain.features != features:
        raise refuse(_wrong_features(folder, str(config.get("model_type")), features=features))
    size = weight_bytes(sentence.folder, config, refuse, unused=unused_weights(config))
    tokenizer = tokenizer_files.locate(
        sentence.folder,
        config,
        tokenizer_files.TokenizerRequest(sentence.tokenizer_arguments, sentence.lower_case, options.trust_remote_code),
        refuse,
    )
    vocab_size = _number(config, refuse, "vocab_size")
    _check_ids(tokenizer, vocab_size, refuse)
    hidden_size = _number(config, refuse, *HIDDEN_SIZE)
    if task == "embed" and sentence.chain is not None:
        _check_vectors(sentence.chain, folder, hidden_size, refuse)
    pad_id = _pad_id(config, tokenizer.pad_id)
    max_length = _max_length(config, sentence, tokenizer.max_length, pad_id, options, refuse)
    if not own_code and (check := CHECKS.get(str(config.get("model_type")))):
        check(config, max_length, refuse)
    model_info = ModelInfo(
        name=name,
        requested=options.model,
        task=task,
        folder=str(sentence.folder),
        shape=None,
        architecture=architecture,
        hidden_size=hidden_size,
        layers=_number(config, refuse, *LAYERS),
        vocab_size=vocab_size,
        max_length=max_length,
        pad_id=pad_id,
        pooling="cls" if features else _default_pooling(config),
        normalize=False,
        labels=labels_of(config, refuse) if task in LABEL_TASKS else (),
        weight_bytes=size,
        tokenizer_file=str(tokenizer.path),
        tokenizer_check=tokenizer.check,
        tokens_without_rows={text: id for text, id in tokenizer.media_tokens.items() if id >= vocab_size},
        token_types=token_types_of(config),
        sends_token_types=tokenizer.segment_ids,
        entailment=entailment_of(config, refuse) if task == "zero-shot" else -1,
        scores=scores_of(task, config, sentence, refuse),
        batching=batching_of(config, task, options),
        text_features=features,
        bf16=config.get("model_type") not in WITHOUT_BF16,
        notes=(*_notes(task, sentence, config, tokenizer), *dtype_notes),
    )
    check_pairs(model_info, refuse)
    if task == "embed":
        return _with_modules(model_info, sentence, options)
    files = ModelFiles(architecture, hidden_size, sentence, tokenizer.path, (sentence.folder, folder))
    return msgspec.structs.replace(model_info, **task_settings(task, files, refuse))


def _default_pooling(config: Json) -> PoolingMode:
    """The pooling of a model without files of sentence-transformers, as that library chooses it."""
    architectures = config.get("architectures") or [""]
    generates = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    return "lasttoken" if generates else "mean"


def _static_model_info(chain: ModuleChain, sentence: SentenceFiles, options: ModelOptions, name: str) -> ModelInfo:
    """The metadata of a model that begins with StaticEmbedding. Raises ``UsageError`` if it cannot be served."""
    refuse = ModelErrors(options.model)
    if options.task not in ("auto", "embed"):
        raise refuse(
            f"--task {options.task} needs a model with a head, but this is a StaticEmbedding; use --task embed"
        )
    if options.dtype == "int8":
        raise refuse("a StaticEmbedding has no linear layers to quantize to int8; use --dtype bf16 or fp32")
    files = read_static(chain.input, refuse)
    check_widths(chain, files.dimension, refuse)
    limit = f"the model has no limit of its own: texts can have at most {MAX_LENGTH} tokens"
    model_info = ModelInfo(
        name=name,
        requested=options.model,
        task="embed",
        folder=str(chain.input),
        shape=None,
        architecture="StaticEmbedding",
        hidden_size=files.dimension,
        layers=0,
        vocab_size=files.vocab_size,
        max_length=lower_limit(files.max_length, options),
        pad_id=0,
        pooling="mean",
        normalize=False,
        labels=(),
        weight_bytes=files.weight_bytes,
        tokenizer_file=str(files.tokenizer),
        notes=() if files.limited or options.max_length is not None else (limit,),
        special_tokens=False,
    )
    return _with_modules(model_info, sentence, options)


def _with_modules(model_info: ModelInfo, sentence: SentenceFiles, options: ModelOptions) -> ModelInfo:
    """``model_info`` with the modules and settings of sentence-transformers that make an embedding."""
    chain, settings = sentence.chain, sentence.settings
    if chain is None:
        return model_info
    token_modules = tuple(chain.token_modules[: chain.pooled_modules])
    modules: tuple[EmbeddingModule, ...] = tuple(chain.modules)
    normalize = bool(modules) and isinstance(modules[-1], Normalize)
    pooling: Pooling = model_info.pooling if chain.features else "mean"
    if chain.pooling is not None:
        pooling = chain.pooling.modes if len(chain.pooling.modes) > 1 else chain.pooling.modes[0]
    added = sum(module.parameters for module in (*token_modules, *modules))
    return msgspec.structs.replace(
        model_info,
        weight_bytes=model_info.weight_bytes + added * FLOAT32_BYTES,
        pooling=pooling,
        normalize=normalize,
        include_prompt=options.model not in INSTRUCTORS and (chain.pooling is None or chain.pooling.include_prompt),
        token_modules=token_modules,
        modules=modules[:-1] if normalize else modules,
        truncate_dim=settings.truncate_dim,
        prompts=dict(settings.prompts),
        default_prompt=settings.default_prompt,
        notes=(*model_info.notes, *_prompt_notes(settings)),
    )


def _prompt_notes(settings: Settings) -> tuple[str, ...]:
    names = ", ".join(sorted(name for name, text in settings.prompts.items() if text))
    if settings.default_prompt:
        return (f"texts get the default prompt {settings.default_prompt!r} unless a request chooses another one",)
    return (
        (f"requests can choose a prompt with prompt_name ({names}); by default, no prompt is added",) if names else ()
    )


def _notes(
    task: Task, sentence: SentenceFiles, config: Json, tokenizer: tokenizer_files.TokenizerFacts
) -> tuple[str, ...]:
    notes = []
    if task == "embed" and not sentence.kind and config.get("model_type") in TEXT_TOWERS:
        notes.append("the model has no sentence-transformers files: using its text features without normalization")
    elif task == "embed" and not sentence.kind:
        pooling = _default_pooling(config)
        notes.append(f"the model has no sentence-transformers files: using {pooling} pooling without normalization")
    if task == "rerank" and sentence.kind != "CrossEncoder":
        notes.append("serving a reranker, because the model has one label; --task classify serves a classifier instead")
    if tokenizer.converted:
        notes.append(f"{tokenizer.converted}: using the one that transformers builds, {tokenizer.path}")
    return tuple(notes)


def _check_ids(tokenizer: tokenizer_files.TokenizerFacts, vocab_size: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the tokenizer has ids for which the model has no embeddings."""
    if tokenizer.largest_id >= vocab_size:
        raise refuse(
            f"{tokenizer.path} has token ids up to {tokenizer.largest_id}, but config.json has a vocab_size of "
            f"{vocab_size}; the tokenizer belongs to another model, or the model was not resized after adding tokens"
        )


def _check_vectors(chain: ModuleChain, folder: Path, hidden_size: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the modules make no vector of a text, or do not fit together."""
    if not chain.has_vectors:
        raise refuse(
            f"{folder / MODULES} lists no Pooling module, so the model has no embeddings of texts; add one to a copy "
            "of the folder"
        )
    check_widths(chain, hidden_size, refuse)


def _check_bf16(config: Json, options: ModelOptions, refuse: ModelErrors) -> tuple[str, ...]:
    """A note if torch cannot compute the model in bf16. Raises ``UsageError`` if that is requested."""
    kind = str(config.get("model_type"))
    if kind not in WITHOUT_BF16:
        return ()
    reason = f"a {kind} model cannot be computed in bf16, because torch has no {WITHOUT_BF16[kind]} in bf16"
    if options.dtype == "bf16":
        raise refuse(f"{reason}; use --dtype fp32")
    return (f"--dtype auto is fp32: {reason}",) if options.dtype == "auto" else ()


def _wrong_features(folder: Path, kind: str, *, features: bool) -> str:
    if features:
        return (
            f"{folder / MODULES} lists a Transformer for token embeddings, but a {kind} model of texts and images has "
            "text features only; module_output_name must be 'sentence_embedding' in its settings"
        )
    return (
        f"{folder / MODULES} requests text features (get_text_features), which a {kind} model does not have; they need "
        f"one of these types: {', '.join(sorted(TEXT_TOWERS))}"
    )


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
    The number of positions limits both, except ``max_seq_length`` of a model that has no table of positions.
    """
    stated = of_tokenizer if sentence.max_length is None else sentence.max_length
    limits = [stated] if stated is not None and stated < NO_LIMIT else []
    positions = _positions(config)
    unlimited = sentence.max_length is not None and config.get("model_type") in WITHOUT_POSITION_TABLE
    if isinstance(positions, int) and positions > 0 and not unlimited:
        after_padding = pad_id + 1 if config.get("model_type") in POSITIONS_AFTER_PADDING else 0
        limits.append(positions - after_padding)
    if not limits and options.max_length is None:
        raise refuse("none of its files states the maximum number of tokens; set --max-length")
    return lower_limit(min(limits, default=NO_LIMIT), options)


def _positions(config: Json) -> Any:
    # T5 has relative positions; its n_positions has no effect.
    relative = config.get("model_type") in ENCODER_DECODERS
    return config.get("max_position_embeddings", None if relative else config.get("n_positions"))


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
