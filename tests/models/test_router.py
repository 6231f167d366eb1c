"""A SparseEncoder with a Router gives the results of ``encode_query`` and ``encode_document``, or is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from launcher.core.tasks.routes import choose_route
from launcher.errors import UsageError
from launcher.front.item_details import ItemDetails
from launcher.front.tokenizer import FrontTokenizer, Tokenized
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions, ServeOptions
from launcher.prepare.model import setup_of
from launcher.worker.backends.create_backend import with_routes
from launcher.worker.interfaces import Item, ItemBatch, ModelError
from launcher.worker.numerics import comparable
from tests.models import families, references, vocabularies
from tests.models.compare import MACHINE, relative_error
from tests.models.texts import TEXTS

PROMPTS = {"query": "find it: ", "document": "title: ", "other": "some other words "}
BOUND = 1e-6
Calls = Sequence[tuple[str | None, str | None]]
CALLS: Calls = [("query", None), ("document", None), (None, None), ("query", "other"), ("document", "other")]


class Routed:
    """A model with routes, loaded as a worker loads it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        model = ModelOptions(model=str(folder), dtype="fp32", **options)
        self.model_info = resolve(model)
        setup = msgspec.structs.replace(
            setup_of(ServeOptions(model=model), MACHINE, self.model_info), warmup=(), mixed=()
        )
        self._backend = with_routes(setup)
        with torch.no_grad():
            self._backend.load(lambda stage, done, detail: None)

    def items(self, texts: Sequence[str], route: str | None, prompt_name: str | None = None) -> list[Item]:
        """The items of the texts, as the front sends them."""
        tokenizer = FrontTokenizer(self.model_info, text_characters=100_000)
        prompt = choose_route(self.model_info, route, None, prompt_name)
        tokenized: Tokenized = asyncio.run(tokenizer.texts(texts, truncate=True, prompt=prompt))
        tokenizer.close()
        routes = (tokenized.details or ItemDetails()).routes or [0] * len(texts)
        details = tokenized.details or ItemDetails()
        prompts = details.prompt_lengths or [0] * len(texts)
        types = details.type_ids or [None] * len(texts)
        return [Item(*item) for item in zip(tokenized.items, types, prompts, routes, strict=True)]

    def results(self, items: Sequence[Item]) -> list[np.ndarray]:
        """The vector of each item, all computed in one batch."""
        order = sorted(range(len(items)), key=lambda index: -len(items[index]))
        with torch.no_grad():
            output = self._backend.run(ItemBatch.of([items[index] for index in order]))
        found = comparable(output, self.model_info)
        assert output.computed_tokens >= sum(map(len, items))
        return [found[order.index(index)][None] for index in range(len(items))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("router") / "model"
    families.save_router(made, family="bert", tokenizer=vocabularies.bert, prompts=PROMPTS)
    return made


@pytest.fixture(scope="module")
def routed(folder: Path) -> Routed:
    return Routed(folder)


def settings_of(prompt_name: str | None) -> Mapping[str, Any]:
    return {} if prompt_name is None else {"prompt_name": prompt_name}


@pytest.mark.parametrize(("route", "prompt_name"), CALLS)
def test_each_route_gives_the_vectors_of_the_library(
    routed: Routed, folder: Path, route: str | None, prompt_name: str | None
) -> None:
    expected = references.sparse_route(folder, TEXTS, route, **settings_of(prompt_name))
    items = routed.items(TEXTS, route, prompt_name)

    assert relative_error(expected, routed.results(items)) <= BOUND
    alone = [row for item in items for row in routed.results([item])]
    assert relative_error(expected, alone) <= BOUND
    others = [items for call in CALLS if call != (route, prompt_name) for items in [routed.items(TEXTS, *call)]]
    assert all(relative_error(expected, routed.results(other)) > 1e-2 for other in others)


def test_items_of_both_routes_in_a_batch_get_their_own_vectors(routed: Routed, folder: Path) -> None:
    queries, documents = routed.items(TEXTS, "query"), routed.items(TEXTS, "document")
    mixed = [item for pair in zip(queries, documents, strict=True) for item in pair]
    found = routed.results(mixed)

    assert relative_error(references.sparse_route(folder, TEXTS, "query"), found[::2]) <= BOUND
    assert relative_error(references.sparse_route(folder, TEXTS, "document"), found[1::2]) <= BOUND


@pytest.mark.parametrize(
    "settings",
    [{"max_active_dims": 3}, {"max_active_dims": 3, "signed": True}, {"signed": True}, {"dtype": "float16"}],
    ids=str,
)
def test_weights_of_any_sign_and_dtype_are_limited_as_in_the_library(tmp_path: Path, settings: Any) -> None:
    folder = tmp_path / "model"
    families.save_router(folder, family="bert", tokenizer=vocabularies.bert, **settings)
    routed = Routed(folder)

    for route in ("query", "document"):
        expected = references.sparse_route(folder, TEXTS, route)
        assert relative_error(expected, routed.results(routed.items(TEXTS, route))) <= BOUND


def test_a_tokenizer_of_the_static_route_with_a_lower_limit_truncates_queries_only(
    folder: Path, tmp_path: Path
) -> None:
    changed = copy_with(folder, tmp_path, "query_0_SparseStaticEmbedding/tokenizer_config.json", model_max_length=9)
    routed = Routed(changed)
    texts = ["one two three four five six seven eight nine ten eleven twelve"]

    for route in ("query", "document"):
        found = routed.results(routed.items(texts, route))
        assert relative_error(references.sparse_route(changed, texts, route), found) <= BOUND
    assert len(routed.items(texts, "query")[0]) == 9


def test_a_call_must_choose_a_route_that_the_model_has(folder: Path, tmp_path: Path) -> None:
    model_info = resolve(ModelOptions(model=str(folder)))
    with pytest.raises(UsageError, match="'route' is 'passage'; it must be 'query' or 'document'"):
        choose_route(model_info, "passage", None, None)
    without = copy_with(folder, tmp_path, "router_config.json", parameters={"allow_empty_key": False})
    with pytest.raises(UsageError, match="no default route; 'route' must be 'query' or 'document'"):
        choose_route(resolve(ModelOptions(model=str(without))), None, None, None)
    with pytest.raises(UsageError, match="this model has no routes"):
        choose_route(msgspec.structs.replace(model_info, routes=None), "query", None, None)


def test_without_a_stated_default_the_first_route_is_taken(folder: Path, tmp_path: Path) -> None:
    changed = copy_with(folder, tmp_path, "router_config.json", parameters={"default_route": None})
    routed = Routed(changed)

    expected = references.sparse_route(changed, TEXTS, None)
    assert relative_error(expected, routed.results(routed.items(TEXTS, None))) <= BOUND
    assert relative_error(expected, routed.results(routed.items(TEXTS, "document"))) > 1e-2


def test_an_encoder_in_the_folder_of_the_router_and_former_names_of_classes(folder: Path, tmp_path: Path) -> None:
    """As models are published that had files of transformers first."""
    changed = copy_with(folder, tmp_path, "router_config.json")
    for path in (changed / SPLADE[0]).iterdir():
        path.rename(changed / path.name)
    former = "sentence_transformers.sparse_encoder.models."
    types = {QUERY[0]: "SparseStaticEmbedding", "": "MLMTransformer", SPLADE[1]: "SpladePooling"}
    config = {
        "types": {name: former + kind for name, kind in types.items()},
        "structure": {"query": QUERY, "document": ["", SPLADE[1]]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    (changed / "router_config.json").write_text(json.dumps(config))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    (changed / "modules.json").write_text(json.dumps(modules))
    routed = Routed(changed)

    for route in ("query", "document"):
        expected = references.sparse_route(changed, TEXTS, route)
        assert relative_error(expected, routed.results(routed.items(TEXTS, route))) <= BOUND


def copy_with(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    copy = target / "changed"
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


QUERY, SPLADE = ["query_0_SparseStaticEmbedding"], ["document_0_Transformer", "document_1_SpladePooling"]


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("router_config.json", {"structure": {"a": QUERY, "document": SPLADE}}, "the routes 'query' and 'document'"),
        ("router_config.json", {"structure": {"query": SPLADE, "document": SPLADE}}, "one of them a SparseStatic"),
        ("router_config.json", {"structure": {"query": QUERY, "document": QUERY}}, "one of them a SparseStatic"),
        ("router_config.json", {"structure": {"query": QUERY * 2, "document": SPLADE}}, "one of them a SparseStatic"),
        ("router_config.json", {"structure": {"query": 1, "document": SPLADE}}, "sets structure to"),
        ("router_config.json", {"structure": {"query": [QUERY], "document": SPLADE}}, "sets structure to"),
        ("router_config.json", {"types": None}, "sets types to None"),
        ("router_config.json", {"types": {}}, "it is not a module of sentence_transformers"),
        ("router_config.json", {"parameters": {"default_route": "text"}}, "sets default_route to 'text'"),
        ("router_config.json", {"parameters": {"route_mappings": {"(None, None)": "query"}}}, "sets route_mappings"),
        ("router_config.json", {"parameters": {"more": 1}}, "sets more to 1"),
        ("router_config.json", {"more": 1}, "sets more to 1"),
        ("query_0_SparseStaticEmbedding/config.json", {"path": "idf.json"}, "sets path to 'idf.json'"),
        ("query_0_SparseStaticEmbedding/tokenizer_config.json", {"model_max_length": 10**30}, "set --max-length"),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, "begins with the module Sparse"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "requests the module Router"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_routers_are_refused_with_the_reason(
    folder: Path, tmp_path: Path, file: str, changes: Any, reason: str
) -> None:
    changed = copy_with(folder, tmp_path, file, **changes)

    with pytest.raises(UsageError, match="(?s)" + reason.replace("(", r"\(")):
        resolve(ModelOptions(model=str(changed)))


def test_modules_after_the_router_are_refused(folder: Path, tmp_path: Path) -> None:
    changed = copy_with(folder, tmp_path, "router_config.json")
    path = changed / "modules.json"
    normalize = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
    path.write_text(json.dumps([*json.loads(path.read_text()), normalize]))

    with pytest.raises(UsageError, match="lists modules after the Router"):
        resolve(ModelOptions(model=str(changed)))


@pytest.mark.parametrize("change", [lambda weights: weights[:-1], lambda weights: weights[:, None]], ids=["few", "2d"])
def test_weights_that_do_not_fit_the_tokenizer_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    from safetensors.torch import load_file, save_file

    changed = copy_with(folder, tmp_path, "router_config.json")
    static = changed / QUERY[0]
    weights = change(load_file(static / "model.safetensors")["weight"]).contiguous()
    save_file({"weight": weights}, static / "model.safetensors")
    with pytest.raises(UsageError, match="tensor weight of shape"):
        resolve(ModelOptions(model=str(changed)))

    (static / "model.safetensors").unlink()
    torch.save({"weight": weights}, static / "pytorch_model.bin")
    with pytest.raises(ModelError, match="they must be the tensor 'weight' with"):
        Routed(changed)
