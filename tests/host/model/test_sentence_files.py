"""The files of sentence-transformers: what is read, and the refusal of everything that would change a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from launcher.core.protocol.embedding_modules import Dense
from launcher.errors import UsageError
from launcher.host.model.json_files import ModelErrors
from launcher.host.model.resolve import resolve
from launcher.host.model.sentence_files import LIMIT_FILES, SentenceFiles, read_sentence_files
from launcher.host.model.sentence_settings import Settings
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

    model_info = resolve(ModelOptions(model=str(folder)))

    assert read(folder).kind == "SentenceTransformer"
    assert (model_info.pooling, model_info.normalize, model_info.modules) == ("mean", True, ())


@pytest.mark.parametrize(
    "name", ["custom.Transformer", "modeling.Transformer", "Transformer", f"x.{LEGACY}Transformer"]
)
def test_a_module_of_the_models_own_code_is_refused_despite_its_class_name(folder, name) -> None:
    write_json(folder / "modules.json", [{**MODULES[0], "type": name}, MODULES[1]])

    message = refusal(folder)

    assert "modules.json requests the module Transformer" in message
    assert f"type '{name}'" in message


def entry(kind: str, index: int = 2) -> dict[str, object]:
    return {"idx": index, "name": str(index), "path": f"{index}_{kind}", "type": f"{LEGACY}{kind}"}


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([], "must contain a list of modules"),
        ([MODULES[1]], "begins with the module Pooling; it must begin with Transformer or StaticEmbedding"),
        ([MODULES[1], MODULES[0]], "begins with the module Pooling"),
        ([*MODULES, entry("Transformer")], "lists the module Transformer after Transformer; it must be the first"),
        ([*MODULES, NORMALIZE, NORMALIZE], "gives several modules the same name"),
        ([{**MODULES[0], "path": "../other"}], "sets path to '../other'; it must be a folder inside"),
        ([{**MODULES[0], "path": "/models"}], "sets path to '/models'"),
        ([{**MODULES[0], "revision": "main"}], "sets revision of a module to 'main'"),
        ([MODULES[0], entry("Dropout", 1)], "lists Dropout where there is no sentence_embedding yet"),
        ([entry("StaticEmbedding", 0), entry("Pooling", 1)], "lists Pooling after StaticEmbedding"),
    ],
)
def test_modules_that_the_library_cannot_run_are_refused(folder, modules, words) -> None:
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Dropout/config.json", {"dropout": 0.1})

    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("WordEmbeddings", "its tokenizer is not supported"),
        ("BoW", "bags of words"),
        ("CNN", "convolutions"),
        ("LSTM", "recurrent layers"),
        ("WeightedLayerPooling", "only the last layer"),
        ("WordWeights", "weights of words"),
    ],
)
def test_modules_that_are_not_supported_are_refused_with_the_reason(folder, kind, reason) -> None:
    write_json(folder / "modules.json", [*MODULES, entry(kind)])

    message = refusal(folder)

    assert f"requests the module {kind} (type '{LEGACY}{kind}'), which is not supported: " in message
    assert reason in message


DENSE = {"in_features": 8, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def add_dense(folder: Path, **changes: object) -> None:
    write_json(folder / "modules.json", [*MODULES, entry("Dense")])
    write_json(folder / "2_Dense/config.json", {**DENSE, **changes})
    weights = {"linear.weight": np.zeros((4, 8), np.float32), "linear.bias": np.zeros(4, np.float32)}
    save_file(weights, folder / "2_Dense/model.safetensors")


def test_a_dense_module_sets_the_width_and_adds_to_the_memory(folder) -> None:
    plain = resolve(ModelOptions(model=str(folder)))
    add_dense(folder)

    model_info = resolve(ModelOptions(model=str(folder)))

    assert (plain.result_width, model_info.result_width) == (8, 4)
    assert model_info.weight_bytes - plain.weight_bytes == (4 * 8 + 4) * 4
    (dense,) = model_info.modules
    assert dense == Dense(str(folder / "2_Dense"), 8, 4, True, "Tanh")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "transformers.activations.GELUActivation"}, "sets activation_function to 'transf"),
        ({"activation_function": "torch.nn.modules.activation.PReLU"}, "sets activation_function to 'torch.nn.mod"),
        ({"activation_function": "torch.nn.modules.activation.Identity"}, "sets activation_function to 'torch.nn.mod"),
        ({"activation_function": None}, "sets activation_function to None"),
        ({"module_output_name": "projected"}, "sets module_output_name to 'projected'"),
        ({"module_input_name": "token_embeddings", "module_output_name": "sentence_embedding"}, "module_output_name"),
        ({"in_features": 16}, "model.safetensors has the tensor linear.weight of shape [4, 8]"),
        ({"bias": False}, "the module's config requires no tensor linear.bias"),
        ({"bias": "yes"}, "sets bias to 'yes', but it must be true or false"),
        ({"out_features": 0}, "sets out_features to 0, but it must be a positive integer"),
        ({"use_residual": True}, "the module's config requires the tensor residual.weight"),
        ({"dropout": 0.1}, "sets dropout to 0.1, which is not supported"),
    ],
)
def test_a_dense_module_that_cannot_be_applied_is_refused(folder, changes, words) -> None:
    add_dense(folder, **changes)

    message = refusal(folder)

    assert "2_Dense" in message
    assert words in message


def test_a_module_that_does_not_fit_the_vectors_before_it_is_refused(folder) -> None:
    add_dense(folder)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode": ["mean", "cls"]})

    with pytest.raises(UsageError, match=r"2_Dense/config\.json sets in_features to 8, but its input has 16 values"):
        resolve(ModelOptions(model=str(folder)))


def test_a_module_without_weights_is_refused(folder) -> None:
    add_dense(folder)
    (folder / "2_Dense/model.safetensors").unlink()

    assert "2_Dense has no weights: neither model.safetensors nor pytorch_model.bin" in refusal(folder)


def test_embedding_without_a_pooling_module_is_refused_as_the_library_has_no_result(folder) -> None:
    write_json(folder / "modules.json", MODULES[:1])

    with pytest.raises(UsageError, match=r"modules\.json lists no Pooling module"):
        resolve(ModelOptions(model=str(folder)))


# --- pooling


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pooling_mode": "attention"}, "requests the pooling attention"),
        ({"pooling_mode": ["mean", "first"]}, "requests the pooling mean + first"),
        ({"pooling_mode": "mean_tokens"}, "requests the pooling mean_tokens"),
        ({"pooling_mode": []}, "requests the pooling []"),
        ({"pooling_mode": "mean", "include_prompt": "no"}, "sets include_prompt to 'no'"),
        ({"embedding_dimension": 8, "word_embedding_dimension": 9}, "sets embedding_dimension and word_embedding"),
        ({}, "is empty"),
    ],
)
def test_other_pooling_configs_are_refused(folder, config, words) -> None:
    write_json(folder / "1_Pooling/config.json", config and {"word_embedding_dimension": 8, **config})

    assert f"1_Pooling/config.json {words}" in refusal(folder)


@pytest.mark.parametrize("key", ["embedding_dimension", "word_embedding_dimension"])
def test_the_stated_dimension_must_be_that_of_the_encoder(folder, key) -> None:
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "mean", key: 9})

    with pytest.raises(UsageError, match=r"sets the embedding dimension to 9, but the token embeddings have 8 values"):
        resolve(ModelOptions(model=str(folder)))


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, ("cls", "lasttoken")),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True}, ("max", "mean_sqrt_len_tokens")),
        ({"pooling_mode": ["weightedmean", "cls"]}, ("weightedmean", "cls")),
    ],
)
def test_several_modes_are_in_the_order_of_the_library(folder, config, modes) -> None:
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, **config})

    model_info = resolve(ModelOptions(model=str(folder)))

    assert (model_info.pooling, model_info.result_width) == (modes, 16)


def test_an_unknown_key_of_the_pooling_is_refused(folder) -> None:
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode": "mean", "layers": 3})

    assert "1_Pooling/config.json sets layers to 3" in refusal(folder)


def test_without_any_flag_the_pooling_is_the_mean(folder) -> None:
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": False})

    assert resolve(ModelOptions(model=str(folder))).pooling == "mean"


def test_a_named_mode_replaces_the_flags(folder) -> None:
    write_json(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": 8, "pooling_mode": "cls", "pooling_mode_mean_tokens": True},
    )

    assert resolve(ModelOptions(model=str(folder))).pooling == "cls"


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
        ("tokenizer_args", {"do_lower_case": True, "an_argument_of_a_later_version": True}),
        ("model_args", {"num_hidden_layers": 1}),
        ("config_args", {"hidden_act": "relu"}),
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
        ("processor_kwargs", {"model_max_length": "long"}),
        ("model_kwargs", {"model_max_length": 12}),
        ("tokenizer_name_or_path", "other"),
        ("document_length", 300),
        ("max_seq_length", "long"),
        ("max_seq_length", 0),
    ],
)
def test_a_key_that_changes_results_is_refused_with_its_file_and_name(folder, key, value) -> None:
    write_json(folder / "sentence_roberta_config.json", {key: value})

    assert f"sentence_roberta_config.json sets {key}" in refusal(folder)


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
        ({"default_prompt_name": "passage"}, "sets default_prompt_name to 'passage'; it must be one of its prompts"),
        ({"truncate_dim": -4}, "sets truncate_dim to -4"),
        ({"truncate_dim": "4"}, "sets truncate_dim to '4'"),
        ({"prompts": {"query": 3}}, "sets prompts to {'query': 3}"),
        ({"model_type": "MultiVectorEncoder"}, "sets model_type to 'MultiVectorEncoder'"),
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

    assert read(folder).settings == Settings(prompts={"query": "", "document": ""})


def test_prompts_and_the_cut_of_vectors_are_read(folder) -> None:
    settings = {"prompts": {"query": "find: ", "none": None}, "default_prompt_name": "query", "truncate_dim": 4}
    write_json(folder / "config_sentence_transformers.json", settings)

    model_info = resolve(ModelOptions(model=str(folder)))

    assert (model_info.prompts, model_info.default_prompt) == ({"query": "find: ", "none": ""}, "find: ")
    assert (model_info.truncate_dim, model_info.result_width, model_info.unit_vectors) == (4, 4, False)
    assert any("default prompt 'find: '" in note for note in model_info.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"prompts": {"query": "find: "}, "default_prompt_name": "query"},
            "sets default_prompt_name of a CrossEncoder",
        ),
        ({}, "lists other modules than a Transformer"),
    ],
)
def test_a_cross_encoder_with_a_default_prompt_or_more_modules_is_refused(folder, settings, words) -> None:
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **settings})
    if settings:
        write_json(folder / "modules.json", MODULES[:1])

    assert words in refusal(folder)


def test_the_limit_among_the_arguments_of_the_tokenizer_comes_first(folder) -> None:
    limits = {"max_seq_length": 30, "processor_kwargs": {"model_max_length": 20}}
    write_json(folder / "sentence_bert_config.json", limits)
    assert max_length(folder) == 20

    write_json(folder / "sentence_bert_config.json", {**limits, "tokenizer_args": {"model_max_length": 10}})
    assert max_length(folder) == 10


# --- StaticEmbedding


@pytest.fixture
def static_folder(tmp_path: Path) -> Path:
    """A model of static embeddings, without a config.json."""
    write_json(tmp_path / "modules.json", [entry("StaticEmbedding", 0)])
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    (tmp_path / "0_StaticEmbedding").mkdir()
    tokenizer.save(str(tmp_path / "0_StaticEmbedding/tokenizer.json"))
    save_file({"embedding.weight": np.zeros((5, 8), np.float32)}, tmp_path / "0_StaticEmbedding/model.safetensors")
    return tmp_path


def static_refusal(folder: Path, **tensors: np.ndarray) -> str:
    if tensors:
        save_file(tensors, folder / "0_StaticEmbedding/model.safetensors")
    with pytest.raises(UsageError) as caught:
        resolve(ModelOptions(model=str(folder)))
    return str(caught.value)


def test_static_embeddings_need_no_config_and_no_encoder(static_folder) -> None:
    model_info = resolve(ModelOptions(model=str(static_folder)))

    assert (model_info.architecture, model_info.static, model_info.task) == ("StaticEmbedding", True, "embed")
    assert (model_info.vocab_size, model_info.result_width, model_info.weight_bytes) == (5, 8, 5 * 8 * 4)
    assert model_info.folder == str(static_folder / "0_StaticEmbedding")
    assert not model_info.special_tokens


def test_static_embeddings_that_cannot_be_read_are_refused(static_folder) -> None:
    table = np.zeros((5, 8), np.float32)
    assert "must have the table 'embedding.weight' or 'embeddings'" in static_refusal(static_folder, other=table)
    assert "must have the table" in static_refusal(static_folder, embeddings=table.astype(np.int8))
    mapping = np.zeros(4, np.int64)
    assert "one mapping and one weight per token" in static_refusal(
        static_folder, embeddings=table, mapping=mapping, weights=np.zeros(5, np.float32)
    )
    assert "token ids up to 2, but" in static_refusal(static_folder, embeddings=table[:2])
    (static_folder / "0_StaticEmbedding/model.safetensors").rename(
        static_folder / "0_StaticEmbedding/pytorch_model.bin"
    )
    assert "only pytorch_model.bin; save it as safetensors" in static_refusal(static_folder)


def test_static_embeddings_with_a_tokenizer_that_truncates_on_the_left_are_refused(static_folder) -> None:
    path = static_folder / "0_StaticEmbedding/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(7, direction="left")
    tokenizer.save(str(path))

    assert "truncates texts on the left" in static_refusal(static_folder)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config_sentence_transformers.json", {"__version__": None}, "sets __version__ to None"),
        ("config_sentence_transformers.json", {"__version__": 5}, "sets __version__ to 5"),
        (
            "config_sentence_transformers.json",
            {"__version__": {"sentence_transformers": None}},
            "sets __version__.sentence_transformers to None",
        ),
        (
            "config_sentence_transformers.json",
            {"__version__": {"sentence_transformers": "new"}},
            "sets __version__.sentence_transformers to 'new'",
        ),
        ("sentence_bert_config.json", {"transformer_task": None}, "sets transformer_task to None"),
        ("sentence_bert_config.json", {"modality_config": None}, "sets modality_config to None"),
        ("sentence_bert_config.json", {"modality_config": {}}, "sets modality_config to {}"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            "sets modality_config and has no module_output_name",
        ),
        ("sentence_bert_config.json", {"more": None}, "sets more to None"),
        ("1_Pooling/config.json", {"pooling_mode": "mean"}, "has no embedding_dimension"),
        ("1_Pooling/config.json", {"word_embedding_dimension": None, "pooling_mode": "mean"}, "has no embedding_dim"),
        ("1_Pooling/config.json", {"embedding_dimension": "8", "pooling_mode": "mean"}, "sets the embedding_dimension"),
    ],
    ids=str,
)
def test_a_file_that_the_library_cannot_load_is_refused(folder, file: str, changes, words: str) -> None:
    write_json(folder / file, changes)

    assert f"{file} {words}" in refusal(folder)


@pytest.mark.parametrize("version", ["2.2.2", "5.4.0.dev0", "4.0.0rc1", "3.1.0+cpu", "v3"])
def test_the_versions_of_packages_are_accepted(folder, version: str) -> None:
    write_json(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": version}})

    assert resolve(ModelOptions(model=str(folder))).task == "embed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "sets name of a module to None"),
        ({"name": 1}, "sets name of a module to 1"),
        ({"name": "a.b"}, "sets name of a module to 'a.b'"),
        ({"path": None}, "sets path of the module '1' to None"),
        ({"path": 3}, "sets path of the module '1' to 3"),
    ],
    ids=str,
)
def test_a_module_without_a_name_or_a_path_is_refused(folder, changes, words: str) -> None:
    write_json(folder / "modules.json", [MODULES[0], MODULES[1] | changes])
    assert f"modules.json {words}" in refusal(folder)

    write_json(
        folder / "modules.json", [MODULES[0], {key: MODULES[1][key] for key in MODULES[1] if key not in changes}]
    )
    assert "must be a text" in refusal(folder)
