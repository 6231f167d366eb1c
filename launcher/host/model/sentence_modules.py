"""Reads ``modules.json`` of sentence-transformers and the files of its modules into the steps that make an embedding.

Separate from ``sentence_files``, which reads the settings of the whole model. The reference is sentence-transformers 6:
its modules pass on a dictionary, in which ``token_embeddings`` and ``sentence_embedding`` matter here. A module that
cannot be applied exactly is refused with its file, key and value. To add a module: write a function that adds it to a
``ModuleChain``, and list it in ``_READERS`` and, for the names of its class, in ``_CLASSES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

from launcher.core.protocol.embedding_modules import (
    Activation,
    Dense,
    EmbeddingModule,
    LayerNorm,
    Normalize,
    output_width,
)
from launcher.core.protocol.task_settings import SparsePooling
from launcher.host.model.json_files import Json, ModelErrors, read_object, read_value
from launcher.host.model.sentence_pooling import PoolingFile, read_pooling
from launcher.host.model.splade import read_splade_pooling
from launcher.host.model.weights import check_tensors

MODULES = "modules.json"
CONFIG = "config.json"
TRANSFORMER_SETTINGS = "sentence_bert_config.json"

Level = Literal["token_embeddings", "sentence_embedding"]
TOKENS: Final = "token_embeddings"
SENTENCE: Final = "sentence_embedding"

# The classes of sentence-transformers 6, with the package and the file that define each.
_BASE, _OWN, _SPARSE = "base.modules", "sentence_transformer.modules", "sparse_encoder.modules"
_CLASSES: Mapping[str, tuple[str, str]] = {
    "Transformer": (_BASE, "transformer"),
    "Dense": (_BASE, "dense"),
    "Normalize": (_BASE, "normalize"),
    "Router": (_BASE, "router"),
    "Asym": (_BASE, "router"),
    "Pooling": (_OWN, "pooling"),
    "LayerNorm": (_OWN, "layer_norm"),
    "Dropout": (_OWN, "dropout"),
    "StaticEmbedding": (_OWN, "static_embedding"),
    "BoW": (_OWN, "bow"),
    "CNN": (_OWN, "cnn"),
    "LSTM": (_OWN, "lstm"),
    "CLIPModel": (_OWN, "clip_model"),
    "WeightedLayerPooling": (_OWN, "weighted_layer_pooling"),
    "WordEmbeddings": (_OWN, "word_embeddings"),
    "WordWeights": (_OWN, "word_weights"),
    "MLMTransformer": (_SPARSE, "mlm_transformer"),
    "SpladePooling": (_SPARSE, "splade_pooling"),
    "SparseAutoEncoder": (_SPARSE, "sparse_auto_encoder"),
    "SparseStaticEmbedding": (_SPARSE, "sparse_static_embedding"),
}


def _full_names(name: str, package: str, file: str) -> tuple[str, ...]:
    """The full names of a class in the versions 0 to 6. The name of the class alone is not enough: a module of the
    model's own code may have the same one."""
    former = f"sentence_transformers.{'sparse_encoder.' if package == _SPARSE else ''}models.{name}"
    packages = {package, _OWN}
    own = [f"sentence_transformers.{place}{part}.{name}" for place in packages for part in ("", f".{file}")]
    return (former, f"{former}.{name}", *own)


MODULE_KINDS: Mapping[str, str] = {
    full: name for name, (package, file) in _CLASSES.items() for full in _full_names(name, package, file)
}

_ROUTER = "its routes have modules of their own for queries and documents; save one route as a model"
# Why a known module is refused.
REFUSED: Mapping[str, str] = {
    "Router": _ROUTER,
    "Asym": _ROUTER,
    "BoW": "bags of words are not supported",
    "CNN": "convolutions over tokens are not supported",
    "LSTM": "recurrent layers over tokens are not supported",
    "WeightedLayerPooling": "only the last layer of an encoder is computed",
    "WordEmbeddings": "its tokenizer is not supported",
    "WordWeights": "weights of words are not supported",
    "SparseAutoEncoder": "sparse vectors from an autoencoder (CSR) are not supported",
    "SparseStaticEmbedding": "sparse vectors without an encoder are not supported; a Router must have both",
}

# In modules.json: "idx" states the position, which the order of the list determines. "kwargs" are the names of
# arguments that a caller of encode() can pass to a module; none are passed here.
ENTRY_KEYS = frozenset({"idx", "name", "path", "type", "kwargs"})

DENSE_KEYS = frozenset(
    {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
        "use_residual",
    }
)
_ACTIVATION_PLACES = ("torch.nn.", "torch.nn.modules.", "torch.nn.modules.activation.")


@dataclass(slots=True)
class ModuleChain:
    """The modules read so far. ``input`` is the folder of the first one, which makes token embeddings from a text or,
    if it is ``static`` or makes ``features``, the embedding of the text, or if it is ``masked_language_model``, the
    logits of tokens. ``modules`` come after the pooling. A ``splade`` pooling makes sparse vectors from logits."""

    path: Path
    input: Path
    static: bool = False
    features: bool = False
    masked_language_model: bool = False
    splade: SparsePooling | None = None
    token_modules: list[EmbeddingModule] = field(default_factory=list)
    pooling: PoolingFile | None = None
    pooled_modules: int = 0  # how many of the token modules come before the pooling
    modules: list[EmbeddingModule] = field(default_factory=list)

    @property
    def has_vectors(self) -> bool:
        """Whether the modules make an embedding of the text."""
        return self.static or self.features or self.pooling is not None

    def add(self, level: Level, module: EmbeddingModule) -> None:
        """Append a module that changes token embeddings or the embedding of the text."""
        (self.token_modules if level == TOKENS else self.modules).append(module)


@dataclass(frozen=True, slots=True)
class Entry:
    """A module of modules.json: the name of its class, its folder, and the errors about the model."""

    kind: str
    folder: Path
    refuse: ModelErrors

    def config(self, keys: frozenset[str], *, optional: bool = False) -> Json:
        """Its config.json, which must have no other keys; empty if it has none and is ``optional``."""
        path = self.folder / CONFIG
        if optional and not path.is_file():
            return {}
        config = read_object(path, self.refuse)
        for key, value in config.items():
            if key not in keys:
                raise self.refuse(f"{path} sets {key} to {value!r}, which is not supported; it must be absent")
        return config


def read_modules(path: Path, refuse: ModelErrors) -> ModuleChain:
    """The modules of the model, in order. Raises ``UsageError`` for one that cannot be applied exactly."""
    return read_chain(path, read_entries(path, read_value(path, refuse), refuse), refuse)


def read_chain(path: Path, entries: Sequence[Entry], refuse: ModelErrors) -> ModuleChain:
    """The modules in ``entries``, which the file ``path`` lists. Raises ``UsageError`` as ``read_modules``."""
    first, *others = entries
    if first.kind not in ("Transformer", "CLIPModel", "StaticEmbedding", "MLMTransformer"):
        raise refuse(f"{path} begins with the module {first.kind}; it must begin with Transformer or StaticEmbedding")
    chain = ModuleChain(
        path,
        first.folder,
        static=first.kind == "StaticEmbedding",
        features=first.kind == "CLIPModel" or (first.kind == "Transformer" and _makes_features(first)),
        masked_language_model=first.kind == "MLMTransformer",
    )
    for entry in others:
        if entry.kind not in _READERS:
            raise refuse(f"{path} lists the module {entry.kind} after {first.kind}; it must be the first")
        _READERS[entry.kind](entry, chain)
    return chain


def _makes_features(transformer: Entry) -> bool:
    """Whether the Transformer makes an embedding of the text, and not of its tokens. Versions that support this always
    write this file."""
    path = transformer.folder / TRANSFORMER_SETTINGS
    return path.is_file() and read_object(path, transformer.refuse).get("module_output_name") == SENTENCE


def check_widths(chain: ModuleChain, hidden_size: int, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if a module does not fit the vectors before it; those of a token have ``hidden_size``
    values."""
    width = _checked_width(hidden_size, chain.token_modules[: chain.pooled_modules], refuse)
    if chain.pooling is not None:
        if chain.pooling.dimension != width:
            raise refuse(
                f"{chain.pooling.path} sets the embedding dimension to {chain.pooling.dimension}, but the token "
                f"embeddings have {width} values"
            )
        width *= len(chain.pooling.modes)
    _checked_width(width, chain.modules, refuse)


def check_token_widths(chain: ModuleChain, hidden_size: int, refuse: ModelErrors) -> None:
    """As ``check_widths``, for all modules that change token embeddings, before and after the pooling."""
    _checked_width(hidden_size, chain.token_modules, refuse)


def _checked_width(width: int, modules: Sequence[EmbeddingModule], refuse: ModelErrors) -> int:
    for module in modules:
        if isinstance(module, Normalize):
            continue
        key = "in_features" if isinstance(module, Dense) else "dimension"
        wanted = module.in_features if isinstance(module, Dense) else module.dimension
        if wanted != width:
            raise refuse(f"{module.folder}/{CONFIG} sets {key} to {wanted}, but its input has {width} values")
        width = output_width(width, [module])
    return width


def read_entries(path: Path, listed: Any, refuse: ModelErrors, *, known: tuple[str, ...] = ()) -> list[Entry]:
    """The modules in ``listed``, the contents of modules.json; ``known`` are kinds that the caller reads itself.
    Raises ``UsageError`` for one that is not supported."""
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise refuse(f"{path} must contain a list of modules")
    for entry in listed:
        name = entry.get("name")
        if not isinstance(name, str) or not name or "." in name:
            raise refuse(f"{path} sets name of a module to {name!r}; it must be a text without '.'")
        if not isinstance(entry.get("path"), str):
            raise refuse(f"{path} sets path of the module {name!r} to {entry.get('path')!r}; it must be a text")
    names = [entry["name"] for entry in listed]
    if len(set(names)) < len(names):
        raise refuse(f"{path} gives several modules the same name ({names}); sentence-transformers would drop one")
    return [_entry(path, entry, known, refuse) for entry in listed]


def _entry(path: Path, entry: Json, known: tuple[str, ...], refuse: ModelErrors) -> Entry:
    full = str(entry.get("type", "of no type"))
    unknown = next((key for key in entry if key not in ENTRY_KEYS), None)
    if unknown is not None:
        raise refuse(f"{path} sets {unknown} of a module to {entry[unknown]!r}, which is not supported")
    kind = MODULE_KINDS.get(full)
    if kind is None or (kind in REFUSED and kind not in known):
        reason = REFUSED[kind] if kind else "it is not a module of sentence_transformers"
        raise refuse(
            f"{path} requests the module {full.rpartition('.')[2]} (type {full!r}), which is not supported: {reason}. "
            f"Supported are Transformer, StaticEmbedding, {', '.join(_READERS)}"
        )
    place = PurePosixPath(str(entry.get("path", "")))
    if place.is_absolute() or ".." in place.parts:
        raise refuse(f"{path} sets path to {str(place)!r}; it must be a folder inside the model's folder")
    return Entry(kind, path.parent / place, refuse)


# --- modules after the first


def _add_pooling(entry: Entry, chain: ModuleChain) -> None:
    if chain.static or chain.features:
        first = "StaticEmbedding" if chain.static else "a module that makes text features"
        raise entry.refuse(f"{chain.path} lists Pooling after {first}, which has no token embeddings to pool")
    # As in the library, the last pooling counts: it replaces the embedding that the modules before it made.
    chain.pooling, chain.pooled_modules = read_pooling(entry.folder / CONFIG, entry.refuse), len(chain.token_modules)
    chain.modules.clear()


def _add_splade_pooling(entry: Entry, chain: ModuleChain) -> None:
    if chain.splade is not None or chain.static or chain.has_vectors or chain.token_modules:
        raise entry.refuse(f"{chain.path} lists SpladePooling after other modules; it must follow the Transformer")
    chain.splade = read_splade_pooling(entry.folder / CONFIG, entry.refuse)


def _add_dense(entry: Entry, chain: ModuleChain) -> None:
    config = entry.config(DENSE_KEYS)
    path = entry.folder / CONFIG
    dense = Dense(
        folder=str(entry.folder),
        in_features=_size(path, config, "in_features", entry.refuse),
        out_features=_size(path, config, "out_features", entry.refuse),
        bias=_flag(path, config, "bias", True, entry.refuse),
        activation=_activation(path, config, entry.refuse),
        residual=_flag(path, config, "use_residual", False, entry.refuse),
    )
    level = _level(entry, config)
    _require_vectors(entry, chain, level)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (dense.out_features, dense.in_features)}
    if dense.bias:
        shapes["linear.bias"] = (dense.out_features,)
    if dense.residual and dense.in_features != dense.out_features:
        shapes["residual.weight"] = (dense.out_features, dense.in_features)
    check_tensors(entry.folder, shapes, entry.refuse)
    chain.add(level, dense)


def _add_layer_norm(entry: Entry, chain: ModuleChain) -> None:
    dimension = _size(entry.folder / CONFIG, entry.config(frozenset({"dimension"})), "dimension", entry.refuse)
    _require_vectors(entry, chain, SENTENCE)
    check_tensors(entry.folder, {"norm.weight": (dimension,), "norm.bias": (dimension,)}, entry.refuse)
    chain.add(SENTENCE, LayerNorm(str(entry.folder), dimension))


def _add_normalize(entry: Entry, chain: ModuleChain) -> None:
    level = _level(entry, entry.config(frozenset({"module_input_name", "module_output_name"}), optional=True))
    if level == SENTENCE and not chain.has_vectors:
        return  # as in the library, which finds nothing to normalize
    if level == TOKENS and chain.static:
        return
    chain.add(level, Normalize())


def _add_dropout(entry: Entry, chain: ModuleChain) -> None:
    """Dropout changes nothing outside of training."""
    entry.config(frozenset({"dropout"}))
    _require_vectors(entry, chain, SENTENCE)


_READERS: Mapping[str, Callable[[Entry, ModuleChain], None]] = {
    "Pooling": _add_pooling,
    "Dense": _add_dense,
    "LayerNorm": _add_layer_norm,
    "Normalize": _add_normalize,
    "Dropout": _add_dropout,
    "SpladePooling": _add_splade_pooling,
}


def _require_vectors(entry: Entry, chain: ModuleChain, level: Level) -> None:
    """Raise ``UsageError`` if there is nothing that the module could work on; the library fails then."""
    if (level == SENTENCE and not chain.has_vectors) or (level == TOKENS and (chain.static or chain.features)):
        raise entry.refuse(f"{chain.path} lists {entry.kind} where there is no {level} yet; it must follow Pooling")


def _level(entry: Entry, config: Json) -> Level:
    """What a module changes: its input and its output must be the same."""
    source = config.get("module_input_name", SENTENCE)
    target = config.get("module_output_name")
    for key, name in (("module_input_name", source), ("module_output_name", source if target is None else target)):
        if name not in (TOKENS, SENTENCE) or name != source:
            raise entry.refuse(
                f"{entry.folder / CONFIG} sets {key} to {name!r}, which is not supported; input and output must be "
                f"both {SENTENCE!r} or both {TOKENS!r}"
            )
    return TOKENS if source == TOKENS else SENTENCE


def _size(path: Path, config: Json, key: str, refuse: ModelErrors) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refuse(f"{path} sets {key} to {value!r}, but it must be a positive integer")
    return value


def _flag(path: Path, config: Json, key: str, default: bool, refuse: ModelErrors) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise refuse(f"{path} sets {key} to {value!r}, but it must be true or false")
    return value


def _activation(path: Path, config: Json, refuse: ModelErrors) -> Activation:
    named = config.get("activation_function", "torch.nn.modules.activation.Tanh")  # the default of the library
    activation = activation_of(named)
    if activation is None:
        raise refuse(f"{path} sets activation_function to {named!r}, which is not supported; {ACTIVATIONS_HINT}")
    return activation


ACTIVATIONS_HINT = f"must be a class of torch.nn out of {', '.join(get_args(Activation))}"


def activation_of(named: Any) -> Activation | None:
    """The activation with this dotted path, as different versions save it; ``None`` if it is not supported."""
    if named == "torch.nn.modules.linear.Identity":
        return "Identity"
    place, dot, name = str(named).rpartition(".")
    known = place + dot in _ACTIVATION_PLACES and name in get_args(Activation)
    if known and not (name == "Identity" and place.endswith("activation")):
        return name  # type: ignore[return-value]  # one of the names
    return None
