"""The inputs of a request: texts or token ids, as all our APIs accept them.

Separate from the decoders because the name of the field differs between API families. Tokenizing does not belong here.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from launcher.errors import RequestError

Inputs = Annotated[
    str | list[str | int | list[int]],
    Meta(
        description="A text, a list of texts, the token ids of one text, or a list of lists of token ids. The model's "
        "special tokens are added to texts, but not to token ids. Token ids are refused unless the server runs with "
        "--token-ids accept."
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


def texts_or_token_ids(value: Any, field: str, limit: int) -> tuple[list[str], None] | tuple[None, list[Any]]:
    """The inputs as (texts, None), or as (None, lists or arrays of token ids). Raises ``RequestError``.

    ``field`` is the name of the field that they are in; ``limit`` is the maximum number of inputs per request.
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
                f"'{field}' mixes {_KINDS[kind]} with {_KINDS[type(entry)]} (entry {index}); send only one kind",
                code="invalid_type",
                param=field,
            )
    if kind is int:
        return None, [value]
    return (value, None) if kind is str else (None, value)


def token_ids_refused(field: str) -> RequestError:
    """The error for token ids if the server takes only texts: ids of another tokenizer cannot be recognized."""
    return RequestError(
        f"'{field}' has token ids, and this server takes texts: ids of another tokenizer, such as tiktoken's, would "
        "give meaningless results. Send texts (in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)); or, "
        "if the ids are those of this model's tokenizer, start the server with --token-ids accept",
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


_KINDS: dict[type, str] = {str: "texts", int: "token ids", list: "lists of token ids"}
