"""The tasks sparse-embed, token-embed and fill-mask: which model folders have them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.core.protocol.task_settings import MaskTokens, SparsePooling, TokenVectors
from launcher.errors import UsageError
from launcher.host.model.heads import task_of
from launcher.host.model.json_files import ModelErrors, read_object
from launcher.host.model.output_heads import ModelFiles, task_settings
from launcher.host.model.sentence_files import read_sentence_files
from launcher.options import ModelOptions

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 3,
}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": id, "content": content}
        for id, content in enumerate(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<gap>"))
    ],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "model": {"type": "WordPiece"},
}
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "pad_token": "[PAD]"}
SPLADE = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
OLD_SPLADE = "sentence_transformers.sparse_encoder.models.SpladePooling"
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
OLD_MLM = "sentence_transformers.sparse_encoder.models.MLMTransformer"
FILL_MASK = {
    "transformer_task": "fill-mask",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "token_embeddings",
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "config.json", CONFIG)
    write(tmp_path / "tokenizer.json", TOKENIZER)
    write(tmp_path / "tokenizer_config.json", SETTINGS)
    return tmp_path


def splade(
    folder: Path,
    types: tuple[str, ...] = (TRANSFORMER, SPLADE),
    pooling: Any = None,
    limits: Any = FILL_MASK,
    **settings: Any,
) -> None:
    """Add the files of a SparseEncoder."""
    modules = [{"idx": i, "name": str(i), "path": f"{i}_Module" if i else "", "type": t} for i, t in enumerate(types)]
    write(folder / "modules.json", modules)
    write(folder / "1_Module" / "config.json", pooling or {"pooling_strategy": "max", "embedding_dimension": 50})
    write(folder / "sentence_bert_config.json", limits)
    write(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder", **settings})


def info(folder: Path, **options: Any) -> Any:
    """The task of the model, the facts that the task needs, and the files of sentence-transformers."""
    chosen = ModelOptions(model=str(folder), **options)
    refuse = ModelErrors(str(folder))
    sentence = read_sentence_files(folder, refuse)
    config = read_object(folder / "config.json", refuse)
    architecture = config["architectures"][0]
    task = task_of(architecture, config, sentence, chosen, refuse)
    files = ModelFiles(architecture, config["hidden_size"], sentence, folder / "tokenizer.json", (folder, folder))
    return SimpleNamespace(task=task, max_length=sentence.max_length, **task_settings(task, files, refuse))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        info(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("types", [(TRANSFORMER, SPLADE), (TRANSFORMER, OLD_SPLADE), (OLD_MLM, OLD_SPLADE)])
def test_a_sparse_encoder_is_served_as_one_by_default(folder: Path, types: tuple[str, ...]) -> None:
    pooling = {"pooling_strategy": "sum", "activation_function": "log1p_relu", "word_embedding_dimension": None}
    splade(folder, types, pooling, max_active_dims=7, prompts={"query": "q: "}, default_prompt_name="query")
    found = info(folder)
    assert found.task == "sparse-embed"
    assert found.sparse == SparsePooling(pooling="sum", activation="log1p_relu", max_active=7)
    assert (found.prompts, found.default_prompt) == ({"query": "q: "}, "q: ")


def test_the_former_module_needs_no_task(folder: Path) -> None:
    splade(folder, (OLD_MLM, OLD_SPLADE), limits={"max_seq_length": 32, "do_lower_case": False})
    assert (info(folder).task, info(folder).max_length) == ("sparse-embed", 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": {"pooling_strategy": "mean"}}, "pooling_strategy to 'mean'; it must be 'max' or 'sum'"),
        ({"pooling": {"activation_function": "gelu"}}, "activation_function to 'gelu'; it must be 'relu'"),
        ({"pooling": {"top_k": 3}}, "sets top_k to 3, which is not supported"),
        ({"max_active_dims": 0}, "max_active_dims to 0, but it must be a positive integer"),
        ({"limits": {"max_seq_length": 32}}, "transformer_task to None; before SpladePooling it must be 'fill-mask'"),
        ({"types": (TRANSFORMER,)}, "a SparseEncoder must have a Transformer and SpladePooling"),
        ({"model_type": "SentenceTransformer"}, "other models must not have SpladePooling"),
        ({"types": (TRANSFORMER, SPLADE, SPLADE)}, "SpladePooling after other modules"),
    ],
)
def test_a_sparse_encoder_that_is_not_supported_is_refused(folder: Path, changes: Any, message: str) -> None:
    if changes.get("model_type"):
        changes["limits"] = {}
    splade(folder, **changes)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SparseAutoEncoder", "from an autoencoder (CSR) are not supported"),
        ("SparseStaticEmbedding", "without an encoder are not supported"),
    ],
)
def test_other_modules_with_sparse_vectors_are_refused(folder: Path, name: str, reason: str) -> None:
    splade(folder, (TRANSFORMER, f"sentence_transformers.sparse_encoder.modules.{name}"))
    assert reason in refusal(folder)


def test_a_sparse_encoder_has_no_other_task(folder: Path) -> None:
    splade(folder)
    for task in ("embed", "token-embed", "fill-mask"):
        assert "this is a sparse encoder; use --task sparse-embed" in refusal(folder, task=task)


def test_a_masked_language_model_fills_masks_and_makes_sparse_vectors_if_asked(folder: Path) -> None:
    found = info(folder)
    assert found.task == "fill-mask"
    assert found.masks == MaskTokens(4, 3)
    assert info(folder, task="sparse-embed").sparse == SparsePooling()
    assert info(folder, task="token-embed").token_vectors == TokenVectors(8)
    assert info(folder, task="embed").task == "embed"
    assert "needs a model with a token classification head" in refusal(folder, task="tag")


def test_the_mask_token_is_the_one_that_the_files_name(folder: Path) -> None:
    write(folder / "tokenizer_config.json", {**SETTINGS, "mask_token": {"content": "<gap>"}})
    assert info(folder).masks == MaskTokens(5, 3)
    write(folder / "tokenizer_config.json", {**SETTINGS, "mask_token": "<none>"})
    assert "needs a tokenizer with a mask token" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "model", "cleaned"),
    [
        ({}, "WordPiece", False),
        ({"clean_up_tokenization_spaces": True}, "WordPiece", True),
        ({"clean_up_tokenization_spaces": True}, "BPE", False),
    ],
)
def test_decoded_texts_are_cleaned_up_as_in_transformers(
    folder: Path, settings: dict[str, Any], model: str, cleaned: bool
) -> None:
    write(folder / "tokenizer_config.json", {**SETTINGS, **settings})
    write(folder / "tokenizer.json", {**TOKENIZER, "model": {"type": model}})
    masks = info(folder).masks
    assert masks is not None
    assert masks.clean_up == cleaned


def test_heads_of_bge_m3_are_found_beside_the_weights(folder: Path) -> None:
    write(folder / "config.json", {**CONFIG, "architectures": ["BertModel"]})
    assert "or sparse_linear.pt as BGE-M3 has it" in refusal(folder, task="sparse-embed")
    assert "needs a model with a masked language modelling head" in refusal(folder, task="fill-mask")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).write_bytes(b"")
    assert info(folder).task == "embed"
    found = info(folder, task="sparse-embed").sparse
    assert found == SparsePooling(source="head", head="sparse_linear.pt", excluded_ids=(0, 1, 3))
    assert info(folder, task="token-embed").token_vectors == TokenVectors(8, "colbert_linear.pt", True)
