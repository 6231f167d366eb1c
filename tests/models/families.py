"""Builds the models of the table: small, with random weights, saved by transformers and sentence-transformers.

One function per kind of folder. Each takes the folder to write to; what differs between models are its arguments, so a
row of the table is a ``functools.partial``. transformers is imported when a model is built, because the table is also
read without building anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.models.vocabularies import MAX_LENGTH

MakeTokenizer = Callable[[], Any]

SEED = 7
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")

HIDDEN = 32
SPARE_ROWS = 8  # of the vocabulary: some classes of tokenizers add a token when they are loaded
SIZES: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH + 8,  # RoBERTa and its relatives do not use the first ones
}
SIZES_OF_T5: Mapping[str, Any] = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
# What a family needs beyond SIZES. Values differ from the defaults where the default would leave a mechanism unused.
OF_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "albert": {"embedding_size": 16, "num_hidden_groups": 2},
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"embedding_size": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16,
                   "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False},
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "eurobert": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 16, "query_pre_attn_scalar": 8,
                    "layer_types": ["full_attention", "sliding_attention"]},
    "llama": {"num_key_value_heads": 2},
    "longformer": {"attention_window": [16, 8]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "modernbert": {"local_attention": 16, "layer_types": ["full_attention", "sliding_attention"]},
    "mt5": SIZES_OF_T5,
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
    "openai_privacy_filter": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8, "num_local_experts": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roformer": {"embedding_size": 16},
    "squeezebert": {"embedding_size": HIDDEN},
    "t5": SIZES_OF_T5,
    "ultrabert": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "umt5": SIZES_OF_T5,
    "xlnet": {"d_model": HIDDEN, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
}  # fmt: skip
# What is not in the config of a family.
WITHOUT: Mapping[str, tuple[str, ...]] = {"xlnet": tuple(SIZES)}
# Of the weights, relative to the others: MobileBERT does not normalize, so its states would become large.
SCALES: Mapping[str, float] = {"mobilebert": 0.6}
NAMES_OF_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask")


def config_of(family: str, tokenizer: Any, **settings: Any) -> Any:
    """The config of a small model of this family, for this tokenizer."""
    from transformers import AutoConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in NAMES_OF_TOKENS}
    known = {key: value for key, value in ids.items() if value is not None}
    general = {key: value for key, value in SIZES.items() if key not in WITHOUT.get(family, ())}
    sizes = {**general, **OF_FAMILY.get(family, {}), "vocab_size": len(tokenizer) + SPARE_ROWS}
    return AutoConfig.for_model(family, **{**sizes, **known, **settings})


def randomize(model: Any, scale: float = 1.0) -> None:
    """Replace all weights by random ones of a scale at which every part of the model changes its results.

    The scale that libraries initialize with leaves attention nearly uniform and results nearly equal, so that a wrong
    mask would go unnoticed.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.2 * scale / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.1)


def save_transformer(folder: Path, *, auto: str, family: str, tokenizer: MakeTokenizer, **settings: Any) -> None:
    """A folder of transformers: a model of the class ``auto`` with its tokenizer."""
    import transformers

    made = tokenizer()
    model = getattr(transformers, auto).from_config(config_of(family, made, **settings))
    randomize(model, SCALES.get(family, 1.0))
    model.save_pretrained(folder)
    made.save_pretrained(folder)


def save_config(folder: Path, *, family: str) -> None:
    """The config of a model that is refused for its family; nothing else is read then."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family}))


def save_embedder(
    folder: Path, *, family: str, tokenizer: MakeTokenizer, pooling: str = "mean", **settings: Any
) -> None:
    """A folder of sentence-transformers: Transformer, Pooling and Normalize."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    encoder = folder.with_name(f"{folder.name}.encoder")
    save_transformer(encoder, auto="AutoModel", family=family, tokenizer=tokenizer, **settings)
    transformer = Transformer(str(encoder))
    width = transformer.get_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling), Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    shutil.rmtree(encoder)


def save_classifier(folder: Path, *, family: str, tokenizer: MakeTokenizer, labels: int = 3, **settings: Any) -> None:
    """A folder of transformers with a head that classifies texts."""
    save_transformer(folder, auto="AutoModelForSequenceClassification", family=family, tokenizer=tokenizer,
                     num_labels=labels, **settings)  # fmt: skip


def save_splade(
    folder: Path, *, family: str, tokenizer: MakeTokenizer, pooling: Mapping[str, Any] | None = None,
    max_active_dims: int | None = None, **settings: Any,
) -> None:  # fmt: skip
    """A folder of sentence-transformers: a SparseEncoder of a masked language model and SpladePooling."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    encoder = folder.with_name(f"{folder.name}.encoder")
    save_transformer(encoder, auto="AutoModelForMaskedLM", family=family, tokenizer=tokenizer, **settings)
    modules = [Transformer(str(encoder), transformer_task="fill-mask"), SpladePooling(**(pooling or {}))]
    model = SparseEncoder(modules=modules, device="cpu", max_active_dims=max_active_dims)
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(encoder)


def save_router(
    folder: Path, *, family: str, tokenizer: MakeTokenizer, default_route: str | None = "document",
    allow_empty_key: bool = True, prompts: Mapping[str, str] | None = None, max_active_dims: int | None = None,
    signed: bool = False, dtype: str = "float32", **settings: Any,
) -> None:  # fmt: skip
    """A SparseEncoder whose Router has fixed weights of tokens for queries, and SPLADE for documents. ``signed``: some
    weights are negative."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

    encoder = folder.with_name(f"{folder.name}.encoder")
    save_transformer(encoder, auto="AutoModelForMaskedLM", family=family, tokenizer=tokenizer, **settings)
    transformer = Transformer(str(encoder), transformer_task="fill-mask")
    size = len(transformer.tokenizer.get_vocab())
    weights = torch.rand(size, generator=torch.Generator().manual_seed(7)) * 5 - (2.5 if signed else 0)
    router = Router.for_query_document(
        [SparseStaticEmbedding(transformer.tokenizer, weights.to(getattr(torch, dtype)), frozen=True)],
        [transformer, SpladePooling()],
        default_route=default_route,
        allow_empty_key=allow_empty_key,
    )
    model = SparseEncoder(modules=[router], device="cpu", prompts=prompts, max_active_dims=max_active_dims)
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(encoder)


def save_cross_encoder(
    folder: Path, *, family: str, tokenizer: MakeTokenizer, activation: str | None = None, **settings: Any
) -> None:
    """A folder of sentence-transformers: a CrossEncoder with one label; ``activation`` is a class of torch.nn."""
    import torch
    from sentence_transformers import CrossEncoder

    encoder = folder.with_name(f"{folder.name}.encoder")
    save_classifier(encoder, family=family, tokenizer=tokenizer, labels=1, **settings)
    activation_fn = getattr(torch.nn, activation)() if activation else None
    model = CrossEncoder(str(encoder), device="cpu", activation_fn=activation_fn)
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(encoder)


def save_tagger(folder: Path, *, family: str, tokenizer: MakeTokenizer, **settings: Any) -> None:
    """A folder of transformers with a head that classifies tokens."""
    save_transformer(folder, auto="AutoModelForTokenClassification", family=family, tokenizer=tokenizer,
                     id2label=dict(enumerate(LABELS)), label2id={name: id for id, name in enumerate(LABELS)},
                     **settings)  # fmt: skip
