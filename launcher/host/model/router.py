"""Reads the Router of a ``SparseEncoder``, whose routes compute queries and documents with modules of their own.

One route must be a SparseStaticEmbedding, the other a Transformer and SpladePooling: the inference-free SPLADE models.
Separate from ``sentence_modules``, which reads modules that all texts pass through. The reference is
``sentence_transformers.base.modules.router`` of sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from launcher.core.protocol.model_info import FLOAT32_BYTES, ModelInfo
from launcher.core.protocol.task_settings import SparseRoutes
from launcher.host.model import tokenizer_files
from launcher.host.model.json_files import Json, ModelErrors, read_object, read_value
from launcher.host.model.sentence_modules import (
    CONFIG,
    ENTRY_KEYS,
    MODULE_KINDS,
    Entry,
    ModuleChain,
    read_chain,
)
from launcher.host.model.weights import check_tensors
from launcher.options import ModelOptions

ROUTER_CONFIG = "router_config.json"
ROUTE_NAMES = {"query", "document"}
CONFIG_KEYS = frozenset({"types", "structure", "parameters"})
PARAMETERS = frozenset({"default_route", "allow_empty_key", "route_mappings"})
# "frozen" matters in training only.
STATIC_KEYS = frozenset({"frozen"})
WANTED = (
    "must be the only module of a SparseEncoder and have the routes 'query' and 'document', one of them a "
    "SparseStaticEmbedding, the other a Transformer and SpladePooling; otherwise, save one route as a model"
)


@dataclass(frozen=True, slots=True)
class Router:
    """The routes: ``static`` is the name and the folder of one, ``chain`` has the modules of the other, with the name
    ``encoder``. ``default`` is the name of the route of a text for which none is chosen, if there is one."""

    static: str
    folder: Path
    encoder: str
    chain: ModuleChain
    default: str | None


def read_router(path: Path, refuse: ModelErrors) -> Router | None:
    """The Router in modules.json; ``None`` if that does not begin with one. Raises ``UsageError`` if it is not
    supported."""
    listed = read_value(path, refuse)
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    if MODULE_KINDS.get(str(first.get("type"))) not in ("Router", "Asym"):
        return None
    if len(listed) > 1:
        raise refuse(f"{path} lists modules after the Router, which is not supported: it {WANTED}")
    for key, value in first.items():
        if key not in ENTRY_KEYS:
            raise refuse(f"{path} sets {key} of a module to {value!r}, which is not supported; it must be absent")
    root = _folder(path, path.parent, first.get("path", ""), refuse)
    config_path = root / ROUTER_CONFIG if (root / ROUTER_CONFIG).is_file() else root / CONFIG
    config = read_object(config_path, refuse)
    if unknown := set(config) - CONFIG_KEYS:
        name = min(unknown)
        raise refuse(f"{config_path} sets {name} to {config[name]!r}, which is not supported; it must be absent")
    return _routes(config_path, config, refuse)


def _routes(path: Path, config: Json, refuse: ModelErrors) -> Router:
    structure, types = _structure(path, config, refuse), config.get("types")
    if not isinstance(types, dict):
        raise refuse(f"{path} sets types to {types!r}, but it must be an object")
    routes = {name: [_entry(path, types, module, refuse) for module in modules] for name, modules in structure.items()}
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
    return Router(
        static[0],
        module.folder,
        encoder[0],
        read_chain(path, routes[encoder[0]], refuse),
        _default(path, config.get("parameters"), list(structure), refuse),
    )


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


def with_routes(model_info: ModelInfo, router: Router, options: ModelOptions, refuse: ModelErrors) -> ModelInfo:
    """``model_info``, which is that of the encoder's route, with the routes. Raises ``UsageError`` if the static route
    cannot be served."""
    tokenizer = tokenizer_files.locate(
        router.folder, {}, tokenizer_files.TokenizerRequest(trust_remote_code=options.trust_remote_code), refuse
    )
    from tokenizers import Tokenizer  # few models need it, and a report imports nothing else that does

    size = Tokenizer.from_file(str(tokenizer.path)).get_vocab_size(with_added_tokens=True)
    if tokenizer.largest_id >= size or size > model_info.vocab_size:
        raise refuse(
            f"{tokenizer.path} has {size} tokens and ids up to {tokenizer.largest_id}, but the encoder of the other "
            f"route has a vocab_size of {model_info.vocab_size}; both routes must have the same vocabulary"
        )
    check_tensors(router.folder, {"weight": (size,)}, refuse)
    limit = tokenizer.max_length
    if options.max_length is None and (limit is None or limit > model_info.max_length):
        raise refuse(
            f"the tokenizer in {router.folder} sets model_max_length to {limit}, but the route {router.encoder!r} "
            f"takes at most {model_info.max_length} tokens; set --max-length to limit both routes"
        )
    choice = "without one, requests must choose" if router.default is None else f"default: {router.default}"
    return msgspec.structs.replace(
        model_info,
        weight_bytes=model_info.weight_bytes + size * FLOAT32_BYTES,
        routes=SparseRoutes(
            static=router.static,
            encoder=router.encoder,
            default=router.default,
            folder=str(router.folder),
            vocab_size=size,
            max_length=min(model_info.max_length, limit or model_info.max_length),
            tokenizer_file=str(tokenizer.path),
            tokenizer_check=tokenizer.check,
        ),
        notes=(*model_info.notes, f"texts take the route query or document by the field route ({choice})"),
    )
