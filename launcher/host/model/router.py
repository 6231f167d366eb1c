"""Reads a Router, whose routes compute queries and documents with modules of their own.

In a ``SparseEncoder``, one route must be a SparseStaticEmbedding, the other a Transformer and SpladePooling: the
inference-free SPLADE models. In a ``SentenceTransformer``, each route is read like a model without routes: the modules
before the Router, its own, and those after the Router. Separate from ``sentence_modules``, which reads modules that all
texts pass through. The reference is ``sentence_transformers.base.modules.router`` of sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from launcher.core.protocol.model_info import FLOAT32_BYTES, ModelInfo, Routes
from launcher.host.model import tokenizer_files
from launcher.host.model.json_files import Json, ModelErrors, read_object, read_value
from launcher.host.model.sentence_modules import (
    CONFIG,
    MODULE_KINDS,
    Entry,
    ModuleChain,
    read_chain,
    read_entries,
)
from launcher.host.model.static_embedding import MAX_LENGTH
from launcher.host.model.weights import check_tensors
from launcher.options import ModelOptions

ROUTER_CONFIG = "router_config.json"
ROUTE_NAMES = {"query", "document"}
CONFIG_KEYS = frozenset({"types", "structure", "parameters"})
PARAMETERS = frozenset({"default_route", "allow_empty_key", "route_mappings"})
# "frozen" matters in training only.
STATIC_KEYS = frozenset({"frozen"})
ROUTER_KINDS = ("Router", "Asym")
WANTED = (
    "must have the routes 'query' and 'document' and, in a SparseEncoder, be the only module, one of them a "
    "SparseStaticEmbedding, the other a Transformer and SpladePooling; otherwise, save one route as a model"
)


@dataclass(frozen=True, slots=True)
class Router:
    """The routes: their names, and the modules of each. ``second`` is a folder instead if its only module is a
    SparseStaticEmbedding. ``default`` is the name of the route of a text for which none is chosen, if there is one."""

    first_name: str
    second_name: str
    first: ModuleChain
    second: ModuleChain | Path
    default: str | None


def read_router(path: Path, refuse: ModelErrors, *, sparse: bool) -> Router | None:
    """The Router in modules.json of a SparseEncoder (``sparse``) or a SentenceTransformer; ``None`` if it has none.
    Raises ``UsageError`` if it is not supported."""
    listed = read_value(path, refuse)
    kinds = [_kind(entry) for entry in listed] if isinstance(listed, list) else []
    places = [index for index, kind in enumerate(kinds) if kind in ROUTER_KINDS]
    if not places:
        return None
    if len(places) > 1 or (sparse and len(listed) > 1):
        others = "several Routers" if len(places) > 1 else "modules after the Router"
        raise refuse(f"{path} lists {others}, which is not supported: it {WANTED}")
    (place,) = places
    entries = read_entries(path, listed, refuse, known=ROUTER_KINDS)
    root = _folder(path, path.parent, listed[place].get("path", ""), refuse)
    config_path = root / ROUTER_CONFIG if (root / ROUTER_CONFIG).is_file() else root / CONFIG
    config = read_object(config_path, refuse)
    if unknown := set(config) - CONFIG_KEYS:
        name = min(unknown)
        raise refuse(f"{config_path} sets {name} to {config[name]!r}, which is not supported; it must be absent")
    routes = _routes(config_path, config, refuse)
    default = _default(config_path, config.get("parameters"), list(routes), refuse)
    for name, own in routes.items():
        if not own:
            raise refuse(f"{config_path} sets structure to one in which the route {name!r} has no modules")
    if sparse:
        return _sparse_router(config_path, routes, default, refuse)
    first, second = (
        read_chain(config_path, [*entries[:place], *own, *entries[place + 1 :]], refuse) for own in routes.values()
    )
    names = list(routes)
    return Router(names[0], names[1], first, second, default)


def _kind(entry: Any) -> str | None:
    return MODULE_KINDS.get(str(entry.get("type"))) if isinstance(entry, dict) else None


def _routes(path: Path, config: Json, refuse: ModelErrors) -> dict[str, list[Entry]]:
    """The modules of each route, in the order of the file."""
    structure, types = _structure(path, config, refuse), config.get("types")
    if not isinstance(types, dict):
        raise refuse(f"{path} sets types to {types!r}, but it must be an object")
    for module in types:
        _entry(path, types, module, refuse)  # the library loads modules that no route has, too
    return {name: [_entry(path, types, module, refuse) for module in modules] for name, modules in structure.items()}


def _sparse_router(path: Path, routes: Mapping[str, list[Entry]], default: str | None, refuse: ModelErrors) -> Router:
    kinds = {name: [entry.kind for entry in entries] for name, entries in routes.items()}
    static = [name for name, found in kinds.items() if found == ["SparseStaticEmbedding"]]
    encoder = [
        name
        for name, found in kinds.items()
        if found in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"])
    ]
    if len(static) != 1 or len(encoder) != 1:
        raise refuse(
            f"{path} sets structure to routes of the modules {kinds}, which is not supported: the Router {WANTED}"
        )
    (module,) = routes[static[0]]
    module.config(STATIC_KEYS)
    return Router(encoder[0], static[0], read_chain(path, routes[encoder[0]], refuse), module.folder, default)


def _structure(path: Path, config: Json, refuse: ModelErrors) -> Mapping[str, list[str]]:
    """The names of the modules of each route."""
    structure = config.get("structure")
    routes = list(structure.values()) if isinstance(structure, dict) and set(structure) == ROUTE_NAMES else []
    lists = all(isinstance(route, list) and all(isinstance(name, str) for name in route) for route in routes)
    if not isinstance(structure, dict) or not routes or not lists:
        raise refuse(f"{path} sets structure to {structure!r}, which is not supported: the Router {WANTED}")
    return structure


def _default(path: Path, parameters: Any, names: Sequence[str], refuse: ModelErrors) -> str | None:
    """The default route: as in the library, the first one unless ``allow_empty_key`` is false."""
    if not isinstance(parameters, dict):
        raise refuse(f"{path} sets parameters to {parameters!r}, but it must be an object")
    for key, value in parameters.items():
        if key not in PARAMETERS or (key == "route_mappings" and value not in (None, {})):
            raise refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be absent")
    default, first = parameters.get("default_route"), parameters.get("allow_empty_key", True)
    if default not in (None, *names):
        raise refuse(f"{path} sets default_route to {default!r}; it must be one of {names} or null")
    if not isinstance(first, bool):
        raise refuse(f"{path} sets allow_empty_key to {first!r}, but it must be true or false")
    return names[0] if default is None and first else default


def _entry(path: Path, types: Json, module: Any, refuse: ModelErrors) -> Entry:
    full = str(types.get(module, "of no type"))
    kind = MODULE_KINDS.get(full)
    if kind is None:
        raise refuse(
            f"{path} requests the module {full.rpartition('.')[2]} (type {full!r}), which is not supported: it is not "
            f"a module of sentence_transformers. The Router {WANTED}"
        )
    return Entry(kind, _folder(path, path.parent, module, refuse), refuse)


def _folder(path: Path, root: Path, value: Any, refuse: ModelErrors) -> Path:
    place = PurePosixPath(str(value))
    if place.is_absolute() or ".." in place.parts:
        raise refuse(f"{path} names the folder {str(place)!r}; it must be a folder inside the model's folder")
    return root / place


def with_sparse_route(
    model_info: ModelInfo, router: Router, folder: Path, options: ModelOptions, refuse: ModelErrors
) -> ModelInfo:
    """``model_info``, which is that of the encoder's route, with the static route, whose weights are in ``folder``.
    Raises ``UsageError`` if it cannot be served."""
    tokenizer = tokenizer_files.locate(
        folder, {}, tokenizer_files.TokenizerRequest(trust_remote_code=options.trust_remote_code), refuse
    )
    from tokenizers import Tokenizer  # few models need it, and a report imports nothing else that does

    size = Tokenizer.from_file(str(tokenizer.path)).get_vocab_size(with_added_tokens=True)
    if tokenizer.largest_id >= size or size > model_info.vocab_size:
        raise refuse(
            f"{tokenizer.path} has {size} tokens and ids up to {tokenizer.largest_id}, but the encoder of the other "
            f"route has a vocab_size of {model_info.vocab_size}; both routes must have the same vocabulary"
        )
    check_tensors(folder, {"weight": (size,)}, refuse)
    limit = tokenizer.max_length
    if options.max_length is None and (limit is None or limit > model_info.max_length):
        raise refuse(
            f"the tokenizer in {folder} sets model_max_length to {limit}, but the route {router.first_name!r} "
            f"takes at most {model_info.max_length} tokens; set --max-length to limit both routes"
        )
    static = msgspec.structs.replace(
        model_info,
        folder=str(folder),
        architecture="SparseStaticEmbedding",
        layers=0,
        tokenizer_file=str(tokenizer.path),
        tokenizer_check=tokenizer.check,
        max_length=min(model_info.max_length, limit or model_info.max_length),
        vocab_size=size,
        weight_bytes=size * FLOAT32_BYTES,
        sends_token_types=False,
        special_tokens=False,
        tokens_without_rows={},
        notes=(),
    )
    return _joined(model_info, static, Routes(router.first_name, router.second_name, router.default, static))


def with_second_route(
    first: ModelInfo, second: ModelInfo, router: Router, options: ModelOptions, refuse: ModelErrors
) -> ModelInfo:
    """The metadata of a model with these two routes. Raises ``UsageError`` if they cannot be served together."""
    if first.result_width != second.result_width:
        raise refuse(
            f"the Router has routes whose embeddings differ in size, which is not supported: those of "
            f"{router.first_name!r} have {first.result_width} values, those of {router.second_name!r} "
            f"{second.result_width}; save one route as a model"
        )
    names = (router.first_name, router.second_name)
    if (second.layers > 0, second.max_length) > (first.layers > 0, first.max_length):
        first, second, names = second, first, (names[1], names[0])
    notes = first.notes
    if second.max_length > first.max_length:  # a StaticEmbedding, which may have no limit of its own
        if options.max_length is None and second.max_length < MAX_LENGTH:
            raise refuse(
                f"{second.tokenizer_file} truncates texts to {second.max_length} tokens, but the route {names[0]!r} "
                f"takes at most {first.max_length} tokens; set --max-length to limit both routes"
            )
        notes += (f"texts of the route {names[1]} can have at most {first.max_length} tokens, as those of {names[0]}",)
        second = msgspec.structs.replace(second, max_length=first.max_length)
    first = msgspec.structs.replace(first, notes=notes, bf16=first.bf16 and second.bf16)
    return _joined(first, second, Routes(*names, router.default, second))


def _joined(first: ModelInfo, second: ModelInfo, routes: Routes) -> ModelInfo:
    choice = "without one, requests must choose" if routes.default is None else f"default: {routes.default}"
    return msgspec.structs.replace(
        first,
        weight_bytes=first.weight_bytes + second.weight_bytes,
        routes=routes,
        notes=(*first.notes, f"texts take the route query or document by the field route ({choice})"),
    )
