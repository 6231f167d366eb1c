"""The inputs of a request: texts or token ids, as all our APIs accept them.

Separate from the decoders because the name of the field differs between API families. Tokenizing does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from launcher.errors import RequestError
from launcher.front.pairs import Pair

Inputs = Annotated[
    str | list[str | int | list[int]],
    Meta(
        description="A text, a list of texts, the token ids of one text, or a list of lists of token ids. The model's "
        "special tokens are added to texts, but not to token ids. Token ids are refused unless the server runs with "
        "--token-ids accept, or with a tiktoken encoding: then they are decoded and used like texts."
    ),
]


class InputObject(Struct, frozen=True, forbid_unknown_fields=True):
    """A text or a pair of texts (``text``, ``text_pair``), or the token ids of one with their token types
    (``input_ids``, ``token_type_ids``)."""

    text: str | UnsetType = UNSET
    text_pair: str | UnsetType = UNSET
    input_ids: list[int] | UnsetType = UNSET
    token_type_ids: list[int] | UnsetType = UNSET


PairInputs = Annotated[
    str | InputObject | list[str | int | list[int] | InputObject],
    Meta(
        description="A text, a list of texts, an object or a list of objects with a pair of texts as 'text' and "
        "'text_pair', or token ids: those of one text, a list of lists, or objects with 'input_ids' and "
        "'token_type_ids'. The model's special tokens are added to texts, but not to token ids. Token ids are refused "
        "unless the server runs with --token-ids accept."
    ),
]
Truncate = Annotated[
    bool,
    Meta(description="Truncate inputs that are longer than the model's limit, and report which, instead of failing."),
]

PromptName = Annotated[
    str | None,
    Meta(
        description="The name of a prompt of the model (see /info), which is prepended to each input. Default: the "
        "model's default prompt, if it has one. Only for embeddings of texts."
    ),
]
Prompt = Annotated[
    str | None,
    Meta(description="A text to prepend to each input, instead of a prompt of the model; may be empty."),
]
Route = Annotated[
    str | None,
    Meta(
        description="The route of the inputs, 'query' or 'document', if the model computes these with modules of their "
        "own; its prompt of that name is used unless another one is chosen. Default: the model's default route."
    ),
]


def texts_or_token_ids(value: Any, field: str, limit: int) -> tuple[list[str], None] | tuple[None, list[Any]]:
    """The inputs as (texts, None), or as (None, lists or arrays of token ids). Raises ``RequestError``.

    ``field`` is the name of the field that they are in; ``limit`` is the maximum number of inputs per request.
    """
    if isinstance(value, str):
        return [value], None
    if isinstance(value, InputObject):
        value = [value]
    if not value:
        raise RequestError(f"'{field}' is an empty list; send at least one input", code="empty_input", param=field)
    kind = type(value[0])
    if kind is not int and len(value) > limit:
        raise too_many_inputs(field, str(len(value)), limit)
    for index, entry in enumerate(value):
        if type(entry) is not kind:
            raise RequestError(
                f"'{field}' mixes {_KINDS[kind]} with {_KINDS[type(entry)]} (entry {index}); send only one kind",
                code="invalid_type",
                param=field,
            )
    if kind is int:
        return None, [value]
    return (value, None) if kind is str else (None, list(value))


def token_ids_refused(field: str) -> RequestError:
    """The error for token ids if the server takes only texts: ids of another tokenizer cannot be recognized."""
    return RequestError(
        f"'{field}' has token ids, and this server accepts only texts: ids of another tokenizer, such as tiktoken's, "
        "would give meaningless results. Send texts (in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)) "
        "or start the server with --token-ids accept if the ids are those of this model's tokenizer, or with the name "
        "of a tiktoken encoding (--token-ids cl100k_base for LangChain) to have them decoded",
        code="token_ids_refused",
        param=field,
    )


def too_many_inputs(field: str, found: str, limit: int) -> RequestError:
    """The error for a request with more than ``limit`` inputs."""
    return RequestError(
        f"'{field}' has {found} inputs, the limit is {limit} per request; send several requests",
        status=413,
        code="too_many_inputs",
        param=field,
    )


_KINDS: dict[type, str] = {str: "texts", int: "token ids", list: "lists of token ids", InputObject: "objects"}


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a request: texts and pairs of texts, or lists of token ids with their token types."""

    texts: Sequence[str | Pair] = ()
    ids: Sequence[list[int]] = ()
    type_ids: Sequence[list[int]] = ()


def read_objects(objects: Sequence[InputObject], field: str) -> Objects:
    """The contents of objects, which must all be of one kind. Raises ``RequestError``."""
    texts: list[str | Pair] = []
    ids: list[list[int]] = []
    type_ids: list[list[int]] = []
    for index, entry in enumerate(objects):
        if entry.text is not UNSET and entry.input_ids is UNSET and entry.token_type_ids is UNSET:
            texts.append(entry.text if entry.text_pair is UNSET else (entry.text, entry.text_pair))
        elif entry.input_ids is not UNSET and entry.text is UNSET and entry.text_pair is UNSET:
            ids.append(entry.input_ids)
            type_ids.append([0] * len(entry.input_ids) if entry.token_type_ids is UNSET else entry.token_type_ids)
        else:
            raise RequestError(
                f"'{field}' has an invalid object (entry {index}); it must have 'text' and optionally 'text_pair', "
                "or 'input_ids' and optionally 'token_type_ids'",
                code="invalid_type",
                param=field,
            )
    if texts and ids:
        raise RequestError(
            f"'{field}' mixes texts with token ids; send only one kind", code="invalid_type", param=field
        )
    return Objects(texts, ids, type_ids)
