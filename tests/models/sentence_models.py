"""Builds models with the modules and settings of sentence-transformers, saved by that library.

Separate from ``families`` because these rows differ in what follows the encoder, which is always a small BERT.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.models.families import HIDDEN, randomize, save_transformer
from tests.models.vocabularies import bert

MakeModules = Callable[[], Sequence[Any]]
STATIC_WIDTH = 24


def save_modules(folder: Path, *, modules: MakeModules, settings: dict[str, Any] | None = None, **limits: Any) -> None:
    """A BERT followed by ``modules``, with the arguments ``settings`` of ``SentenceTransformer``, and ``limits`` in its
    sentence_bert_config.json."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    encoder = folder.with_name(f"{folder.name}.encoder")
    save_transformer(encoder, auto="AutoModel", family="bert", tokenizer=bert)
    chain = [Transformer(str(encoder)), *modules()]
    SentenceTransformer(modules=chain, device="cpu", **settings or {}).save(str(folder), create_model_card=False)
    shutil.rmtree(encoder)
    if limits:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))


def save_static(folder: Path, *, modules: MakeModules = tuple, model2vec: bool = False) -> None:
    """Static embeddings followed by ``modules``; the weights are those of ``model2vec``, if set."""
    import torch
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = bert()
    tokenizer.backend_tokenizer.no_truncation()
    first = StaticEmbedding(tokenizer, embedding_dim=STATIC_WIDTH)
    randomize(first)
    SentenceTransformer(modules=[first, *modules()], device="cpu").save(str(folder), create_model_card=False)
    if model2vec:
        generator, rows = torch.Generator().manual_seed(5), 300
        mapping = torch.randint(0, rows, (len(tokenizer),), generator=generator)
        weights = torch.rand(len(tokenizer), generator=generator) + 0.1
        table = torch.randn(rows, STATIC_WIDTH, generator=generator)
        save_file({"embeddings": table, "mapping": mapping, "weights": weights}, folder / "model.safetensors")


def save_routes(
    folder: Path, *, query: MakeModules, document: MakeModules, before: MakeModules = tuple,
    after: MakeModules = tuple, default_route: str | None = "document", **settings: Any,
) -> None:  # fmt: skip
    """A SentenceTransformer whose Router has these modules for queries and documents, among the modules that all texts
    pass through; ``settings`` are its arguments."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    router = Router.for_query_document([*query()], [*document()], default_route=default_route)
    model = SentenceTransformer(modules=[*before(), router, *after()], device="cpu", **settings)
    model.save(str(folder), create_model_card=False)


def transformer(family: str, tokenizer: Callable[[], Any], **settings: Any) -> Any:
    """A Transformer module with random weights."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    with TemporaryDirectory() as encoder:
        save_transformer(Path(encoder), auto="AutoModel", family=family, tokenizer=tokenizer, **settings)
        return Transformer(encoder)


def static(width: int = STATIC_WIDTH, *, limit: int | None = None) -> Any:
    """A StaticEmbedding module with random weights, whose tokenizer truncates to ``limit`` tokens."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = bert()
    tokenizer.backend_tokenizer.no_truncation()
    if limit is not None:
        tokenizer.backend_tokenizer.enable_truncation(limit)
    module = StaticEmbedding(tokenizer, embedding_dim=width)
    randomize(module)
    return module


def pooling(*modes: str, width: int = HIDDEN, include_prompt: bool = True) -> Any:
    """A Pooling module with one or several modes."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(width, modes, include_prompt=include_prompt)  # type: ignore[arg-type]


def dense(in_features: int, out_features: int, **arguments: Any) -> Any:
    """A Dense module with random weights."""
    from sentence_transformers.sentence_transformer.modules import Dense

    module = Dense(in_features, out_features, **arguments)
    randomize(module)
    return module


def layer_norm(width: int) -> Any:
    """A LayerNorm module with random weights."""
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    module = LayerNorm(width)
    randomize(module)
    return module


def dropout() -> Any:
    """A Dropout module."""
    from sentence_transformers.sentence_transformer.modules import Dropout

    return Dropout(0.5)


def normalize(**arguments: Any) -> Any:
    """A Normalize module."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    return Normalize(**arguments)
