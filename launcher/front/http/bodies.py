"""The JSON that comes in and goes out, as types, and how a body becomes one of them or a clear refusal.

The types are the single source of the OpenAPI document. Reading from the connection and computing must not enter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from launcher.errors import RequestError

Input = Annotated[
    str | list[str | int | list[int]],
    Meta(
        description="A text, a list of texts, the token ids of one text, or a list of such lists. Texts get the "
        "model's special tokens; token ids are used as they are."
    ),
]
Truncate = Annotated[
    bool,
    Meta(description="Cut inputs that are longer than the model takes, and report them, instead of refusing them."),
]


class EmbeddingsRequest(Struct, frozen=True):
    """Body of ``POST /v1/embeddings``: OpenAI's, and ``truncate``."""

    input: Input
    model: Annotated[str | None, Meta(description="The served model; may be left out.")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="base64: the little-endian float32 values of the vector."),
    ] = None
    dimensions: Annotated[
        int | None,
        Meta(description="Keep only so many leading values; the vector is normalized again where the model's are."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for compatibility, not used.")] = None
    truncate: Truncate = False


class PredictRequest(Struct, frozen=True):
    """Body of ``POST /predict``."""

    inputs: Input
    truncate: Truncate = False


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens computed for the request, special tokens counted, padding not."""

    prompt_tokens: int
    total_tokens: int
    truncated: Annotated[
        tuple[int, ...], Meta(description="Indices of the inputs that were cut; left out where none was.")
    ] = ()


class Embedding(Struct, frozen=True):
    """One vector; a string where base64 was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsReply(Struct, frozen=True):
    """Reply of ``POST /v1/embeddings``, one entry for each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class LabelScore(Struct, frozen=True):
    """One label and its score."""

    label: str
    score: float


class PredictReply(Struct, frozen=True):
    """Reply of ``POST /predict``, one prediction for each input, in order.

    For a classifier a prediction is all labels with their scores, best first; for an embedder it is the vector.
    """

    model: str
    task: Literal["embed", "classify"]
    predictions: list[list[LabelScore | float]]
    usage: Usage


class TagRequest(Struct, frozen=True):
    """Body of ``POST /predict`` where the model tags tokens."""

    inputs: Input
    truncate: Truncate = False
    aggregation: Annotated[
        Literal["simple", "none"] | None,
        Meta(
            description="simple (texts only, and their default): neighbouring tokens of one entity are joined, those "
            "of none left out. none: every token with its best label, as token ids are answered always."
        ),
    ] = None


class Tagged(Struct, frozen=True, omit_defaults=True):
    """An entity or a token, its label and score, and where it stands: in a text as its code points ``start`` to
    ``end`` (not included) and what stands there, ``text``; among token ids as its ``index``."""

    label: str
    score: float
    text: str | UnsetType = UNSET
    start: int | UnsetType = UNSET
    end: int | UnsetType = UNSET
    index: int | UnsetType = UNSET


class TagReply(Struct, frozen=True):
    """Reply of ``POST /predict`` where the model tags tokens: a list for each input, in order.

    Special tokens that texts get, or that are among token ids, are not in it.
    """

    model: str
    task: Literal["tag"]
    predictions: list[list[Tagged]]
    usage: Usage


class Model(Struct, frozen=True):
    """A served model."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "launcher"


class ModelList(Struct, frozen=True):
    """Reply of ``GET /v1/models``."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(Struct, frozen=True):
    """Reply of ``GET /health``."""

    status: Literal["ok"] = "ok"


class Readiness(Struct, frozen=True):
    """Reply of ``GET /ready``: whether requests are answered, and the state of each instance."""

    ready: bool
    instances: dict[str, Any]


class ErrorDetail(Struct, frozen=True):
    """What went wrong, for people (``message``) and for programs (``code``, and ``param``: the field at fault)."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, frozen=True):
    """Every error has this shape."""

    error: ErrorDetail


Body = TypeVar("Body", bound=Struct)
_FIELD = re.compile(r" - at `\$\.(\w+)")
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyDecoder(Generic[Body]):
    """Decodes the bodies of one route.

    Fields that the route does not know are ignored, since clients of other servers send extensions of theirs, but
    not silently: their names come back beside the body.
    """

    def __init__(self, body_type: type[Body]) -> None:
        strict = msgspec.defstruct(f"Strict{body_type.__name__}", [], bases=(body_type,), forbid_unknown_fields=True)
        self._fields = frozenset(body_type.__struct_fields__)
        self._strict = msgspec.json.Decoder(cast("type[Body]", strict)).decode
        self._lenient = msgspec.json.Decoder(body_type).decode
        self._names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def decode(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The body and the names of the fields that were ignored. Raises ``RequestError``."""
        if not body:
            raise RequestError("the body is empty; send a JSON object", code="invalid_json")
        try:
            return self._strict(body), ()
        except Exception:
            return self._decode_again(body)

    def _decode_again(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The slow way: either there are unknown fields, or the body is wrong and the error is to be explained."""
        try:
            decoded = self._lenient(body)
            return decoded, self.ignored(body, decoded)
        except msgspec.ValidationError as error:
            field = _FIELD.search(str(error))
            param = field.group(1) if field else None
            raise RequestError(f"the body is not as expected: {error}", code="invalid_type", param=param) from error
        except UnicodeDecodeError as error:
            reason = f"the body is not valid UTF-8: {error.reason} at byte {error.start}"
            raise RequestError(reason, code="invalid_json") from error
        except RecursionError as error:
            raise RequestError("the body is nested too deeply", code="invalid_json") from error
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not valid JSON: {_explain(body, error)}", code="invalid_json") from error

    def ignored(self, body: bytes, decoded: Body) -> Sequence[str]:
        """The names of the fields of a body that its type does not have."""
        return sorted(set(self._names(body)) - self._fields)


def _explain(body: bytes, error: msgspec.DecodeError) -> str:
    if _HALF_SURROGATE.search(body):
        return f"{error}; it has a surrogate escape (\\ud800 to \\udfff), which is text only as a pair"
    return str(error)


def as_lists(value: Any, field: str, limit: int) -> tuple[list[str], None] | tuple[None, list[Any]]:
    """The inputs as (texts, None) or as (None, lists or arrays of token ids). Raises ``RequestError``.

    ``limit`` is the most inputs that one request may have.
    """
    if isinstance(value, str):
        return [value], None
    if not value:
        raise RequestError(f"'{field}' is an empty list; send at least one input", code="empty_input", param=field)
    kind = type(value[0])
    if kind is not int and len(value) > limit:
        raise too_many_inputs(field, str(len(value)), limit)
    for index, entry in enumerate(value):
        if type(entry) is not kind:
            raise RequestError(
                f"'{field}' mixes {_KINDS[kind]} with {_KINDS[type(entry)]} (entry {index}); send one kind only",
                code="invalid_type",
                param=field,
            )
    if kind is int:
        return None, [value]
    return (value, None) if kind is str else (None, value)


def too_many_inputs(field: str, found: str, limit: int) -> RequestError:
    """The refusal of a request with more inputs than it may have."""
    return RequestError(
        f"'{field}' has {found} inputs, a request may have {limit}; send several requests",
        status=413,
        code="too_many_inputs",
        param=field,
    )


_KINDS: dict[type, str] = {str: "texts", int: "token ids", list: "lists of token ids"}
