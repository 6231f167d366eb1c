"""Settings that a server can ignore without any error, and then return other vectors or scores than the library.

One test for each. A small model is saved by its library, one setting is changed in a file of its folder, and the model
must be right (equal to the library, which reads the same folder) or refused with the file, the key and the value. Each
test also shows that the setting matters: with it, the library itself computes something clearly different.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.core.tasks.entities import default_aggregation
from launcher.errors import UsageError
from launcher.front.http.inputs import token_ids_refused
from launcher.front.tasks.token_labels import TokenLabeler
from launcher.front.tasks.words import WordStarts
from launcher.front.token_id_decoder import TokenIdDecoder
from launcher.front.tokenizer import FrontTokenizer
from launcher.host.model.resolve import resolve
from launcher.host.model.sentence_files import LIMIT_FILES
from launcher.options import FrontOptions, ModelOptions
from launcher.worker.interfaces import Item, ModelError
from tests.models import families, references, sentence_models, vocabularies
from tests.models.compare import Served, relative_error
from tests.models.edited_folders import ABSENT, copy_with
from tests.models.references import Results
from tests.models.texts import PAIRS, TEXTS

BOUND = 1e-5
CLEARLY = 1e-2  # the least difference that a setting must make

LONG = " ".join(TEXTS)  # begins and ends with different words
LIMITS, SETTINGS = LIMIT_FILES[0], "config_sentence_transformers.json"
BIOES = ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
OF_BERT: Mapping[str, Any] = {"family": "bert", "tokenizer": vocabularies.bert}
OF_ROBERTA: Mapping[str, Any] = {"family": "roberta", "tokenizer": vocabularies.roberta}
OF_DECODER: Mapping[str, Any] = {"family": "qwen3", "tokenizer": vocabularies.decoder, "pooling": "lasttoken"}

BUILDS: Mapping[str, Callable[[Path], None]] = {
    "embedder": partial(families.save_embedder, **OF_BERT),
    "unnormalized": partial(sentence_models.save_modules, modules=lambda: [sentence_models.pooling("mean")]),
    "roberta": partial(families.save_embedder, **OF_ROBERTA),
    "decoder": partial(families.save_embedder, **OF_DECODER),
    "reranker": partial(families.save_cross_encoder, **OF_BERT),
    "classifier": partial(families.save_classifier, **OF_BERT),
    "masked": partial(families.save_transformer, auto="AutoModelForMaskedLM", **OF_BERT),
    "reader": partial(families.save_transformer, auto="AutoModelForQuestionAnswering", **OF_BERT),
    "chooser": partial(families.save_transformer, auto="AutoModelForMultipleChoice", **OF_BERT),
    "tagger": partial(
        families.save_transformer, auto="AutoModelForTokenClassification", **OF_BERT,
        id2label=dict(enumerate(BIOES)), label2id={label: id for id, label in enumerate(BIOES)},
    ),
}  # fmt: skip

Edit = Callable[..., Path]
Original = Callable[[str], Path]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """The folder of one of BUILDS, built once, which must not be changed."""
    root = tmp_path_factory.mktemp("originals")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            BUILDS[name](root / name)
        return root / name

    return folder


@pytest.fixture
def edited(original: Original, tmp_path: Path) -> Edit:
    """A copy of the folder of one of BUILDS, with other values for some keys of one of its files."""

    def folder(name: str, file: str, **values: Any) -> Path:
        copy = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        return copy_with(original(name), copy, file, values)

    return folder


def results_of(folder: Path, inputs: Sequence[Any], *, layout: Any = "auto", **options: Any) -> Results:
    """The results of the launcher, of all inputs in one batch."""
    with Served(folder, options, layout=layout) as served:
        return served.results(inputs, len(inputs))


def assert_equal(expected: Results, actual: Results) -> None:
    """Assert that the launcher gives the results of the library."""
    assert relative_error(expected, actual) <= BOUND


def assert_matters(one: Results, other: Results) -> None:
    """Assert that the two results of the library differ clearly."""
    assert relative_error(one, other) > CLEARLY


def assert_refused(folder: Path, *named: str, **options: Any) -> None:
    """Assert that the model is refused, and that the message contains these parts: file, key and value."""
    with pytest.raises((UsageError, ModelError)) as caught:
        Served(folder, options)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [], message


def task_or_refusal(folder: Path) -> str:
    """The task that the launcher chooses for a model, or the message with which it refuses it."""
    try:
        return str(resolve(ModelOptions(model=str(folder))).task)
    except UsageError as refused:
        return str(refused)


# --- inputs


def test_token_ids_of_langchain(original: Original) -> None:
    import tiktoken

    assert FrontOptions().token_ids == "refuse"
    refusal = str(token_ids_refused("input"))
    assert "check_embedding_ctx_length=False" in refusal
    assert "--token-ids" in refusal

    letters = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("letters", pat_str=r"\S+|\s+", mergeable_ranks=letters, special_tokens={})
    ids = [encoding.encode(text) for text in TEXTS[:4]]
    texts = TokenIdDecoder(encoding, text_characters=10_000).texts(ids, "input")
    expected = references.embed(original("embedder"), TEXTS[:4])
    with Served(original("embedder"), {}) as served:
        assert_equal(expected, served.results(texts, len(texts)))
        # The ids of another tokenizer are valid ids of this one, with other meanings.
        items = [Item(np.array(one[: served.model_info.max_length], dtype=np.int32)) for one in ids]
        assert_matters(expected, served.results_of_items(items, len(items)))


def test_segment_ids_of_pairs(original: Original) -> None:
    expected = references.classify(original("classifier"), PAIRS)
    with Served(original("classifier"), {}) as served:
        assert_equal(expected, served.results(PAIRS, len(PAIRS)))
        items = served.items(PAIRS)
        assert any(item.type_ids is not None and np.any(item.type_ids) for item in items)
        single = served.results_of_items([Item(item.ids) for item in items], len(items))
    assert_matters(expected, single)


def test_padding_token_in_a_text_of_the_roberta_family(original: Original) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["rain <pad> and a cat sat on the mat", "<pad><pad> nobody went out", "no"]
    expected = references.embed(original("roberta"), texts)
    assert_equal(expected, results_of(original("roberta"), texts))
    assert_equal(expected, results_of(original("roberta"), texts, layout="sorted"))

    # The library does not count the padding token as a position.
    tokenizer = AutoTokenizer.from_pretrained(original("roberta"))
    model = AutoModel.from_pretrained(original("roberta")).eval()
    counted = []
    with torch.no_grad():
        for text in texts[:2]:
            encoded = tokenizer(text, return_tensors="pt")
            positions = torch.arange(encoded["input_ids"].shape[1])[None] + tokenizer.pad_token_id + 1
            vector = model(**encoded, position_ids=positions).last_hidden_state.mean(dim=1)
            counted.append(torch.nn.functional.normalize(vector).numpy())
    assert_matters(expected[:2], counted)


# --- settings of the tokenizer


def test_case_and_accents_in_tokenizer_config(original: Original, edited: Edit) -> None:
    folder = edited("embedder", "tokenizer_config.json", do_lower_case=False, strip_accents=False)
    expected = references.embed(folder, TEXTS)
    assert_equal(expected, results_of(folder, TEXTS))
    assert_matters(expected, references.embed(original("embedder"), TEXTS))


def test_truncation_side(original: Original, edited: Edit) -> None:
    folder = edited("embedder", "tokenizer_config.json", truncation_side="left")
    assert_refused(folder, "tokenizer_config.json", "truncation_side", "'left'")
    assert_matters(references.embed(folder, [LONG]), references.embed(original("embedder"), [LONG]))


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_arguments_of_the_tokenizer(key: str, original: Original, edited: Edit) -> None:
    folder = edited("embedder", LIMITS, **{key: {"do_lower_case": False}})
    expected = references.embed(folder, TEXTS)
    assert_equal(expected, results_of(folder, TEXTS))
    assert_matters(expected, references.embed(original("embedder"), TEXTS))

    folder = edited("embedder", LIMITS, **{key: {"truncation_side": "left"}})
    assert_refused(folder, LIMITS, key, "'truncation_side': 'left'")
    assert_matters(references.embed(folder, [LONG]), references.embed(original("embedder"), [LONG]))


# --- files of sentence-transformers


@pytest.mark.parametrize("key", ["config_args", "config_kwargs"])
def test_arguments_of_the_config(key: str, original: Original, edited: Edit) -> None:
    folder = edited("embedder", LIMITS, **{key: {"num_hidden_layers": 1}})
    assert_refused(folder, LIMITS, key, "'num_hidden_layers': 1")
    assert_matters(references.embed(folder, TEXTS), references.embed(original("embedder"), TEXTS))


def test_method_output_name(original: Original, edited: Edit) -> None:
    output = ["hidden_states", 1]
    modality = {"text": {"method": "forward", "method_output_name": output}}
    folder = edited("embedder", LIMITS, modality_config=modality, module_output_name="token_embeddings")
    assert_refused(folder, LIMITS, "modality_config", str(output))
    assert_matters(references.embed(folder, TEXTS), references.embed(original("embedder"), TEXTS))


def test_missing_pooling(original: Original, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(original("embedder"), folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    assert_refused(folder, "modules.json", "no Pooling module")
    with pytest.raises(Exception, match="sentence_embedding"):
        references.embed(folder, TEXTS)

    # Without any file of sentence-transformers, both use the mean.
    (folder / "modules.json").unlink()
    expected = references.embed(folder, TEXTS)
    assert_equal(expected, results_of(folder, TEXTS))
    assert_matters(expected, references.embed(original("embedder"), TEXTS))


@pytest.mark.parametrize(
    "name", ["custom.Transformer", "sentence_transformers.models.custom.Transformer", "Transformer"]
)
def test_custom_module_types(name: str, original: Original, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(original("embedder"), folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = name
    (folder / "modules.json").write_text(json.dumps(modules))
    assert_refused(folder, "modules.json", "type", repr(name))
    # The library would run the code of that class, and does not take it for its own.
    with pytest.raises((ImportError, ValueError)):
        references.embed(folder, TEXTS)


def test_default_prompt(original: Original, edited: Edit) -> None:
    prompts = {"query": "find this: ", "passage": "about: "}
    folder = edited("embedder", SETTINGS, prompts=prompts, default_prompt_name="query")
    expected = references.embed(folder, TEXTS)
    assert_equal(expected, results_of(folder, TEXTS))
    assert_matters(expected, references.embed(original("embedder"), TEXTS))


def test_truncate_dim(original: Original, edited: Edit) -> None:
    folder = edited("embedder", SETTINGS, truncate_dim=7)
    expected = references.embed(folder, TEXTS)
    assert_equal(expected, results_of(folder, TEXTS))
    assert {rows.shape[1] for rows in references.embed(original("embedder"), TEXTS)} != {7}


@pytest.mark.parametrize("name", LIMIT_FILES)
def test_legacy_config_names(name: str, original: Original, edited: Edit) -> None:
    folder = edited("embedder", name, max_seq_length=12)
    for other in LIMIT_FILES:
        if other != name:
            (folder / other).unlink(missing_ok=True)
    expected = references.embed(folder, TEXTS[-2:])
    assert_equal(expected, results_of(folder, TEXTS[-2:]))
    assert_matters(expected, references.embed(original("embedder"), TEXTS[-2:]))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_seq_length": 76},  # larger than that of the tokenizer
        {"max_seq_length": 12},
        {"max_seq_length": 12, "processor_kwargs": {"model_max_length": 20}},
        {"max_seq_length": 12, "processor_kwargs": {"model_max_length": 20}, "tokenizer_args": {"model_max_length": 9}},
    ],
    ids=["larger", "smaller", "argument", "former argument"],
)
def test_precedence_of_length_limits(limits: dict[str, Any], original: Original, edited: Edit) -> None:
    folder = edited("embedder", LIMITS, **limits)
    expected = references.embed(folder, TEXTS[-2:])
    assert_equal(expected, results_of(folder, TEXTS[-2:]))
    assert_matters(expected, references.embed(original("embedder"), TEXTS[-2:]))


def test_a_limit_of_a_model_without_a_table_of_positions(original: Original, edited: Edit) -> None:
    positions = json.loads((original("decoder") / "config.json").read_text())["max_position_embeddings"]
    folder = edited("decoder", LIMITS, max_seq_length=2 * positions)
    expected = references.embed(folder, [LONG])
    assert_equal(expected, results_of(folder, [LONG]))
    assert_matters(expected, references.embed(original("decoder"), [LONG]))


# --- heads and their scores


@pytest.mark.parametrize("name", ["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"])
def test_activation_fn_as_version_6_saves_it(name: str, original: Original, edited: Edit) -> None:
    folder = edited("reranker", SETTINGS, activation_fn=name)
    expected = references.rerank(folder, PAIRS)
    assert_equal(expected, results_of(folder, PAIRS))
    assert_matters(expected, references.rerank(original("reranker"), PAIRS))


NAMED_ACTIVATIONS: Sequence[tuple[dict[str, Any], bool]] = (
    ({"sentence_transformers": {"version": "4.1.0", "activation_fn": "torch.nn.modules.activation.Tanh"}}, True),
    ({"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}}, True),
    ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
    ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmin"}}, False),
)


@pytest.mark.parametrize(("values", "supported"), NAMED_ACTIVATIONS, ids=["version 4", "alias", "version 3", "other"])
def test_named_activations(values: dict[str, Any], supported: bool, original: Original, edited: Edit) -> None:
    folder = edited("reranker", "config.json", **values)
    # Version 6 saves a name of its own, which would replace that of config.json.
    folder = copy_with(folder, folder.with_name("named"), SETTINGS, {"activation_fn": ABSENT})
    expected = references.rerank(folder, PAIRS)
    assert_matters(expected, references.rerank(original("reranker"), PAIRS))
    if supported:
        assert_equal(expected, results_of(folder, PAIRS))
    else:
        ((key, value),) = values.items()
        name = value["activation_fn"] if isinstance(value, dict) else value
        assert_refused(folder, "config.json", key, name)


def test_longrope(edited: Edit, original: Original) -> None:
    from sentence_transformers import SentenceTransformer

    rope = {"rope_type": "longrope", "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "rope_theta": 10000.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    folder = edited("decoder", "config.json", rope_parameters=rope)
    assert_refused(folder, "config.json", "rope_parameters", "'longrope'")
    # In the library, the result of a short text depends on whether a long one is in its batch.
    model = SentenceTransformer(str(folder), device="cpu")
    short, long = TEXTS[1], TEXTS[-1]
    assert_matters([model.encode([short])], [model.encode([short, long])[:1]])


@pytest.mark.parametrize(
    ("name", "head", "task"),
    [
        ("reader", "BertForQuestionAnswering", "question-answering"),
        ("chooser", "BertForMultipleChoice", None),
        ("masked", "BertForMaskedLM", "fill-mask"),
    ],
)
def test_heads_that_are_dropped(name: str, head: str, task: str | None, original: Original) -> None:
    folder = original(name)
    found = task_or_refusal(folder)
    assert found == task or ("config.json names the architecture" in found and head in found)
    # Only on request, an embedder.
    assert_equal(references.embed(folder, TEXTS), results_of(folder, TEXTS, task="embed"))


def test_bioes_prefixes(original: Original) -> None:
    from transformers import pipeline

    folder, texts = original("tagger"), TEXTS[1:4]
    expected = references.tag(folder, texts)
    with Served(folder, {}) as served:
        rows = served.results(texts, len(texts))
        model_info = served.model_info
    assert_equal(expected, rows)

    assert default_aggregation(BIOES) == "bioes"
    front = FrontTokenizer(model_info, text_characters=10_000)
    tokenized = asyncio.run(front.texts(texts))
    special = frozenset((2, 3))  # [CLS] and [SEP]
    labeler = TokenLabeler(BIOES, special, WordStarts(front.vocabulary))
    run = pipeline("token-classification", model=str(folder), device="cpu")
    differ = False
    for text, ids, spans, scores in zip(texts, tokenized.items, tokenized.spans, rows, strict=True):
        tokens = [(text[entry["start"] : entry["end"]], entry["entity"]) for entry in run(text)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = [
                (one["entity_group"], one["start"], one["end"]) for one in run(text, aggregation_strategy="simple")
            ]
        found = {name: list(labeler.of_text(scores, ids, (text, spans), name)) for name in ("none", "simple", "bioes")}
        assert [(one.text, one.label) for one in found["none"]] == tokens
        assert [(one.label, one.start, one.end) for one in found["simple"]] == groups
        assert not any(one.label.startswith(("B-", "I-", "E-", "S-")) for one in found["bioes"])
        # An S- is an entity of its own, whatever stands beside it.
        lone = [label[2:] for _, label in tokens if label.startswith("S-")]
        assert len([one for one in found["bioes"] if one.label in lone]) >= len(lone)
        differ |= [(one.label, one.start) for one in found["bioes"]] != [(label, start) for label, start, _ in groups]
    assert differ
