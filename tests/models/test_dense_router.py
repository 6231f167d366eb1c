"""A SentenceTransformer with a Router gives the results of ``encode_query`` and ``encode_document``, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from tests.models import references, sentence_models, vocabularies
from tests.models.compare import relative_error
from tests.models.families import HIDDEN
from tests.models.sentence_models import dense, layer_norm, normalize, pooling, save_routes, static, transformer
from tests.models.test_router import Routed, copy_with
from tests.models.texts import TEXTS

BOUND = 1e-5
PROMPTS = {"query": "find it: ", "document": "title: ", "other": "some other words "}
Calls = Sequence[tuple[str | None, str | None]]
CALLS: Calls = [("query", None), ("document", None), (None, None), ("query", "other"), ("document", "other")]
SHORT = [text for text in TEXTS if len(text) < 60]


def bert(*modes: str) -> list[Any]:
    return [transformer("bert", vocabularies.bert), pooling(*(modes or ("mean",)))]


def roberta(*modules: Any) -> list[Any]:
    return [transformer("roberta", vocabularies.roberta), pooling("cls", include_prompt=False), *modules]


MODELS: dict[str, dict[str, Any]] = {
    "static and transformer": {
        "query": lambda: [static(HIDDEN)],
        "document": bert,
        "after": lambda: [normalize()],
    },
    "static with dense and transformer with dense": {
        "query": lambda: [static(), dense(sentence_models.STATIC_WIDTH, 12), normalize()],
        "document": lambda: [*bert("cls", "max"), dense(2 * HIDDEN, 12), layer_norm(12)],
        "prompts": PROMPTS,
        "truncate_dim": 9,
    },
    "two transformers with tokenizers and limits of their own": {
        "query": lambda: roberta(dense(HIDDEN, 12)),
        "document": lambda: [transformer("bert", vocabularies.bert), pooling("lasttoken"), dense(HIDDEN, 12)],
        "prompts": PROMPTS,
        "after": lambda: [normalize()],
    },
    "one transformer with a dense module per route": {
        "before": bert,
        "query": lambda: [dense(HIDDEN, 12)],
        "document": lambda: [dense(HIDDEN, 12, bias=False), normalize()],
        "prompts": PROMPTS,
        "default_route": "query",
    },
    "two static embeddings": {
        "query": lambda: [static(8, limit=20)],
        "document": lambda: [static(8, limit=100), normalize()],
        "default_route": None,
    },
    "one transformer for queries only": {
        "query": bert,
        "document": lambda: [static(HIDDEN, limit=12)],
        "prompts": PROMPTS,
    },
}


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("router") / "model"
    save_routes(made, **MODELS[request.param])
    return made


def test_each_route_gives_the_vectors_of_the_library(folder: Path) -> None:
    routed = Routed(folder)
    texts = SHORT if any("can have at most" in note for note in routed.model_info.notes) else TEXTS
    calls = [call for call in CALLS if call[1] is None or call[1] in routed.model_info.prompts]
    assert len(texts) > 5
    expected, items = {}, {}
    for route, name in calls:
        settings = {} if name is None else {"prompt_name": name}
        expected[route, name] = references.route(folder, texts, route, **settings)
        items[route, name] = routed.items(texts, route, name)
        found = routed.results(items[route, name])
        assert relative_error(expected[route, name], found) <= BOUND
        alone = [row for item in items[route, name] for row in routed.results([item])]
        assert relative_error(expected[route, name], alone) <= BOUND
    queries, documents = items["query", None], items["document", None]
    mixed = routed.results([item for pair in zip(queries, documents, strict=True) for item in pair])
    assert relative_error(expected["query", None], mixed[::2]) <= BOUND
    assert relative_error(expected["document", None], mixed[1::2]) <= BOUND
    assert relative_error(expected["query", None], mixed[1::2]) > 1e-2


def test_a_limit_of_the_static_route_above_that_of_the_encoder_needs_an_option(tmp_path: Path) -> None:
    save_routes(tmp_path / "model", query=lambda: [static(HIDDEN, limit=400)], document=bert)
    with pytest.raises(UsageError, match=r"truncates texts to 400 tokens.*set --max-length"):
        resolve(ModelOptions(model=str(tmp_path / "model")))
    limited = resolve(ModelOptions(model=str(tmp_path / "model"), max_length=64))
    assert limited.routes is not None
    assert limited.max_length == limited.routes.model_info.max_length == 64


def test_the_dtype_is_that_of_the_encoder(tmp_path: Path) -> None:
    save_routes(tmp_path / "model", query=lambda: [static(HIDDEN)], document=bert)
    model_info = resolve(ModelOptions(model=str(tmp_path / "model"), dtype="int8"))
    assert model_info.routes is not None
    assert model_info.routes.model_info.static
    assert not model_info.unit_vectors


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("router") / "model"
    save_routes(made, query=lambda: [static(HIDDEN)], document=bert)
    return made


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("router_config.json", {"structure": {"a": [], "document": []}}, "the routes 'query' and 'document'"),
        ("router_config.json", {"structure": {"query": [], "document": []}}, "the route 'query' has no modules"),
        ("router_config.json", {"parameters": {"route_mappings": {"(None, None)": "query"}}}, "sets route_mappings"),
        ("router_config.json", {"parameters": {"default_route": "text"}}, "sets default_route to 'text'"),
        ("document_1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
        ("document_0_Transformer/config.json", {"model_type": "gpt2"}, "gpt2"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_routers_are_refused_with_the_reason(
    plain: Path, tmp_path: Path, file: str, changes: Any, reason: str
) -> None:
    changed = copy_with(plain, tmp_path, file, **changes)

    with pytest.raises(UsageError, match=reason):
        resolve(ModelOptions(model=str(changed)))


def test_routes_with_vectors_of_different_sizes_are_refused(tmp_path: Path) -> None:
    save_routes(tmp_path / "model", query=lambda: [static(8)], document=bert)

    with pytest.raises(UsageError, match=f"those of 'query' have 8 values, those of 'document' {HIDDEN}"):
        resolve(ModelOptions(model=str(tmp_path / "model")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda modules: modules * 2, "several Routers"),
        (lambda modules: [*modules, {"name": "1", "path": "", "type": "custom.Module"}], "requests the module Module"),
        (lambda modules: [modules[0] | {"more": 1}], "sets more of a module to 1"),
    ],
    ids=["two", "custom", "key"],
)
def test_other_modules_beside_the_router_are_refused(
    plain: Path, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    changed = copy_with(plain, tmp_path, "router_config.json")
    path = changed / "modules.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    with pytest.raises(UsageError, match=reason):
        resolve(ModelOptions(model=str(changed)))
