"""The files of sentence-transformers: what is read, and the refusal of everything that would change a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.errors import UsageError
from launcher.host.model.json_files import ModelErrors
from launcher.host.model.resolve import resolve
from launcher.host.model.sentence_files import LIMIT_FILES, SentenceFiles, read_sentence_files
from launcher.options import ModelOptions
from tests.host.model.test_resolve import BERT, TOKENIZER, TOKENIZER_CONFIG, write_json

LEGACY = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{LEGACY}Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{LEGACY}Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{LEGACY}Normalize"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete BERT folder of sentence-transformers, with a position table of 64 entries."""
    write_json(tmp_path / "config.json", BERT)
    write_json(tmp_path / "tokenizer.json", TOKENIZER)
    write_json(tmp_path / "tokenizer_config.json", {**TOKENIZER_CONFIG, "model_max_length": 40})
    write_json(tmp_path / "modules.json", MODULES)
    write_json(tmp_path / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
    save_file({"a": np.zeros((50, 8), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def read(folder: Path) -> SentenceFiles:
    return read_sentence_files(folder, ModelErrors(str(folder)))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder)
    return str(caught.value)


def max_length(folder: Path) -> int:
    return resolve(ModelOptions(model=str(folder))).max_length


# --- modules.json


@pytest.mark.parametrize(
    "types",
    [
        (f"{LEGACY}Transformer", f"{LEGACY}Pooling", f"{LEGACY}Normalize"),
        (f"{LEGACY}Transformer.Transformer", f"{LEGACY}Pooling.Pooling", f"{LEGACY}Normalize.Normalize"),
        (
            "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
            "sentence_transformers.base.modules.normalize.Normalize",
        ),
    ],
)
def test_modules_are_known_by_the_names_of_every_version(folder, types) -> None:
    modules = [*MODULES, NORMALIZE]
    write_json(folder / "modules.json", [{**module, "type": name} for module, name in zip(modules, types, strict=True)])

    sentence = read(folder)

    assert (sentence.kind, sentence.pooling, sentence.normalize) == ("SentenceTransformer", "mean", True)


@pytest.mark.parametrize(
    "name", ["custom.Transformer", "modeling.Transformer", "Transformer", f"x.{LEGACY}Transformer"]
)
def test_a_module_of_the_models_own_code_is_refused_despite_its_class_name(folder, name) -> None:
    write_json(folder / "modules.json", [{**MODULES[0], "type": name}, MODULES[1]])

    message = refusal(folder)

    assert "modules.json requests the module Transformer" in message
    assert f"type '{name}'" in message


@pytest.mark.parametrize(
    "modules", [[], [MODULES[1]], [MODULES[1], MODULES[0]], [*MODULES, MODULES[1]], [*MODULES, NORMALIZE, NORMALIZE]]
)
def test_modules_in_another_order_or_number_are_refused(folder, modules) -> None:
    write_json(folder / "modules.json", modules)

    assert "they must be Transformer, Pooling and, optionally, Normalize, in this order" in refusal(folder)


def test_embedding_without_a_pooling_module_is_refused_as_the_library_has_no_result(folder) -> None:
    write_json(folder / "modules.json", MODULES[:1])

    with pytest.raises(UsageError, match=r"modules\.json lists no Pooling module"):
        resolve(ModelOptions(model=str(folder)))


# --- pooling


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["mean", "max"]}, "mean + max"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, "cls_token + max_tokens"),
        ({"pooling_mode": "attention"}, "attention"),
    ],
)
def test_other_pooling_modes_are_refused_by_name(folder, config, words) -> None:
    write_json(folder / "1_Pooling/config.json", config)

    assert f"1_Pooling/config.json requests the pooling {words}" in refusal(folder)


def test_an_unknown_key_of_the_pooling_is_refused(folder) -> None:
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "mean", "layers": 3})

    assert "1_Pooling/config.json sets layers to 3" in refusal(folder)


def test_without_any_flag_the_pooling_is_the_mean(folder) -> None:
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": False})

    assert read(folder).pooling == "mean"


def test_a_named_mode_replaces_the_flags(folder) -> None:
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "cls", "pooling_mode_mean_tokens": True})

    assert read(folder).pooling == "cls"


# --- sentence_*_config.json


@pytest.mark.parametrize("name", LIMIT_FILES)
def test_the_limit_is_read_from_every_name_of_the_file(folder, name) -> None:
    write_json(folder / name, {"max_seq_length": 16, "do_lower_case": False})

    assert max_length(folder) == 16


def test_the_first_file_that_is_not_empty_is_read(folder) -> None:
    write_json(folder / "sentence_bert_config.json", {})
    write_json(folder / "sentence_xlnet_config.json", {"max_seq_length": 12})
    write_json(folder / "sentence_roberta_config.json", {"max_seq_length": 24})

    assert max_length(folder) == 24


@pytest.mark.parametrize(("stated", "limit"), [(20, 20), (50, 50), (100, 64), (None, 40)])
def test_the_limit_replaces_that_of_the_tokenizer_but_not_the_position_table(folder, stated, limit) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": stated})

    assert max_length(folder) == limit


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_args", {"do_lower_case": True}),
        ("model_args", {"num_hidden_layers": 1}),
        ("config_args", {"hidden_act": "relu"}),
        ("processor_kwargs", {"truncation_side": "left"}),
        ("model_kwargs", {"use_cache": True, "variant": "x"}),
        ("config_kwargs", ["x"]),
        ("method_output_name", "pooler_output"),
        ("modality_config", {"text": {"method": "forward", "method_output_name": "pooler_output"}}),
        ("module_output_name", "sentence_embedding"),
        ("transformer_task", "fill-mask"),
        ("processing_kwargs", {"text": {"add_special_tokens": False}}),
        ("query_length", 32),
        ("query_expansion", {"strategy": "fixed", "length": 32}),
        ("a_key_of_a_later_version", 1),
        ("max_seq_length", "long"),
        ("max_seq_length", 0),
    ],
)
def test_a_key_that_changes_results_is_refused_with_its_file_and_name(folder, key, value) -> None:
    write_json(folder / "sentence_roberta_config.json", {key: value})

    assert f"sentence_roberta_config.json sets {key} to " in refusal(folder)


def test_the_values_that_sentence_transformers_saves_by_default_are_accepted(folder) -> None:
    saved = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "processing_kwargs": {},
        "unpad_inputs": True,
        "query_length": None,
        "model_args": {"torch_dtype": "float16", "trust_remote_code": True},
        "tokenizer_args": {},
    }
    write_json(folder / "sentence_bert_config.json", saved)

    assert max_length(folder) == 40


# --- config_sentence_transformers.json


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": {"query": "find: "}, "default_prompt_name": "query"}, "sets default_prompt_name to 'query'"),
        ({"default_prompt_name": "document"}, "sets default_prompt_name to 'document'"),
        ({"truncate_dim": 4}, "sets truncate_dim to 4"),
        ({"model_type": "SparseEncoder"}, "sets model_type to 'SparseEncoder'"),
        ({"a_key_of_a_later_version": True}, "sets a_key_of_a_later_version to True"),
        ({"prompts": ["x"]}, "sets prompts to ['x']"),
    ],
)
def test_settings_that_change_results_are_refused(folder, settings, words) -> None:
    write_json(folder / "config_sentence_transformers.json", settings)

    assert f"config_sentence_transformers.json {words}" in refusal(folder)


def test_settings_that_cannot_change_results_are_accepted(folder) -> None:
    settings = {
        "__version__": {"sentence_transformers": "6.2.0"},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": None,
    }
    write_json(folder / "config_sentence_transformers.json", settings)

    assert read(folder).prompts == {}
