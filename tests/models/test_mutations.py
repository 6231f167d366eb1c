"""Values of config.json that a model may have or that are mistakes: the results are those of the library, or the model
is refused in one sentence, never with a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.errors import UsageError
from launcher.worker.interfaces import ModelError
from tests.models import families, references, vocabularies
from tests.models.compare import Served, relative_error
from tests.models.edited_folders import ABSENT, copy_with
from tests.models.references import Results
from tests.models.texts import TEXTS

BOUND = 1e-5
Edited = Callable[..., Path]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "embedder"
    families.save_embedder(folder, family="bert", tokenizer=vocabularies.bert)
    return folder


@pytest.fixture(scope="module")
def expected(embedder: Path) -> Results:
    return references.embed(embedder, TEXTS)


@pytest.fixture
def edited(embedder: Path, tmp_path: Path) -> Edited:
    return partial(copy_with, embedder, tmp_path / "edited folder", "config.json")


CONTRADICTIONS = (
    ("vocab_size", 700, "embeddings.word_embeddings.weight"),
    ("max_position_embeddings", 200, "embeddings.position_embeddings.weight"),
    ("type_vocab_size", 1, "embeddings.token_type_embeddings.weight"),
    ("intermediate_size", 32, "encoder.layer.0.intermediate.dense.bias"),
)


@pytest.mark.parametrize(("key", "value", "tensor"), CONTRADICTIONS, ids=[key for key, _, _ in CONTRADICTIONS])
def test_a_size_that_contradicts_the_weights_is_refused_with_the_tensor(
    key: str, value: int, tensor: str, edited: Edited
) -> None:
    with pytest.raises(ModelError) as caught:
        Served(edited({key: value}), {})
    message = str(caught.value)
    assert "config.json and the weights in" in message
    assert f"the tensor {tensor} has the shape" in message
    assert str(value) in message.partition("but config.json requires")[2]


# Values that transformers refuses when it reads the config, builds the model, and computes a text.
MISTAKES: tuple[tuple[str, Any], ...] = (
    ("layer_norm_eps", "1e-12"),
    ("intermediate_size", None),
    ("num_attention_heads", 5),
    ("hidden_act", "unknown"),
    ("pad_token_id", 9999),
    ("chunk_size_feed_forward", 7),
    ("id2label", ["a", "b"]),
)


@pytest.mark.parametrize(("key", "value"), MISTAKES, ids=[key for key, _ in MISTAKES])
def test_a_value_that_transformers_refuses_is_refused_in_one_sentence(key: str, value: Any, edited: Edited) -> None:
    folder = edited({key: value})
    with pytest.raises((UsageError, ModelError)) as caught:
        Served(folder, {})
    message = str(caught.value)
    assert "config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["BertModel", [1]], ids=["a string", "a number"])
def test_architectures_that_are_no_list_of_names_are_refused(value: Any, edited: Edited) -> None:
    with pytest.raises(UsageError, match=r"config\.json sets architectures to .*must be a list"):
        Served(edited({"architectures": value}), {})


@pytest.mark.parametrize("value", [ABSENT, []], ids=["absent", "empty"])
def test_a_head_without_a_name_is_not_dropped(value: Any, tmp_path: Path) -> None:
    families.save_classifier(tmp_path / "classifier", family="bert", tokenizer=vocabularies.bert)
    folder = copy_with(tmp_path / "classifier", tmp_path / "edited", "config.json", {"architectures": value})
    with pytest.raises(UsageError, match=r"config\.json has no architectures.*\(classifier\.bias\).*--task embed"):
        Served(folder, {})
    with Served(folder, {"task": "embed"}) as served:
        results = served.results(TEXTS, len(TEXTS))
    assert relative_error(references.embed(folder, TEXTS), results) <= BOUND


def test_weights_that_are_not_numbers_are_refused(edited: Edited) -> None:
    from safetensors.torch import load_file, save_file

    folder = edited({})
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"contain NaN; the weights in .* must be finite"):
        Served(folder, {})


def test_a_tokenizer_that_cannot_encode_texts_is_refused(embedder: Path, tmp_path: Path) -> None:
    folder = copy_with(embedder, tmp_path / "edited", "tokenizer_config.json", {"unk_token": None})
    with pytest.raises((UsageError, ModelError), match=r"unk|UNK"):
        Served(folder, {})


# Keys of configs on the Hub, and whether they change the results of this model.
KEYS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"hidden_act": "relu"}, True),
    ({"layer_norm_eps": 0.3}, True),
    ({"num_hidden_layers": 1}, True),
    ({"num_attention_heads": 2}, True),
    ({"architectures": ABSENT}, False),
    ({"architectures": ["BertModel", "BertForMaskedLM"]}, False),
    ({"position_embedding_type": "relative_key"}, False),  # no longer part of transformers 5
    ({"attention_probs_dropout_prob": 0.9, "hidden_dropout_prob": 0.9}, False),
    ({"torch_dtype": "float32", "use_cache": True, "gradient_checkpointing": True, "_name_or_path": "/x"}, False),
    ({"output_hidden_states": True, "output_attentions": True}, False),
    ({"pad_token_id": 7}, False),
    ({"return_dict": False}, False),
    ({"id2label": {"0": "a", "2": "b"}, "label2id": {}, "problem_type": "regression"}, False),
)


@pytest.mark.parametrize(("values", "matters"), KEYS, ids=["-".join(values) for values, _ in KEYS])
def test_a_value_that_transformers_takes_gives_its_results(
    values: dict[str, Any], matters: bool, edited: Edited, expected: Results
) -> None:
    folder = edited(values)
    with_values = references.embed(folder, TEXTS)
    assert (relative_error(expected, with_values) > 100 * BOUND) == matters
    with Served(folder, {}) as served:
        assert relative_error(with_values, served.results(TEXTS, len(TEXTS))) <= BOUND
        assert np.isfinite(served.results(TEXTS[:1], 1)[0]).all()


LABELS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label"),
    ({"id2label": {"0": "a", "1": "b", "4": "c"}}, "id2label"),
    ({"id2label": {"a": "0", "b": "1", "c": "2"}}, "id2label"),
    ({"id2label": {}}, "id2label"),
    ({"num_labels": 2}, "num_labels"),
    ({"id2label": ABSENT, "num_labels": 0}, "num_labels"),
)


@pytest.mark.parametrize(("values", "key"), LABELS, ids=map(str, range(len(LABELS))))
def test_labels_that_are_not_those_of_the_logits_are_refused(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    families.save_classifier(tmp_path / "classifier", family="bert", tokenizer=vocabularies.bert)
    folder = copy_with(tmp_path / "classifier", tmp_path / "edited", "config.json", values)
    with pytest.raises(UsageError, match=rf"config\.json sets {key} to"):
        Served(folder, {})


@pytest.mark.parametrize("limit", [0, -1, "long"])
def test_a_limit_of_the_tokenizer_that_is_no_length_is_refused(limit: Any, embedder: Path, tmp_path: Path) -> None:
    folder = copy_with(embedder, tmp_path / "edited", "tokenizer_config.json", {"model_max_length": limit})
    with pytest.raises(UsageError, match=rf"tokenizer_config\.json sets model_max_length to {limit!r}"):
        Served(folder, {})


def test_a_model_that_returns_tuples_by_default_gives_the_results_of_the_library(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    families.save_transformer(tmp_path / "masked", auto="AutoModelForMaskedLM", family="bert",
                              tokenizer=vocabularies.bert)  # fmt: skip
    folder = copy_with(tmp_path / "masked", tmp_path / "edited", "config.json", {"return_dict": False})
    expected = SparseEncoder(str(folder), device="cpu").encode(list(TEXTS), show_progress_bar=False).to_dense().numpy()
    with Served(folder, {"task": "sparse-embed"}) as served:
        results = served.results(TEXTS, len(TEXTS))
    assert relative_error([expected], [np.concatenate(results)]) <= BOUND
