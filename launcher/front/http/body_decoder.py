"""Decodes JSON bodies to the types of the API families, or to an error that names the field at fault.

Large bodies are decoded by ``large_body_decoder``. Reading from the connection does not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import msgspec
from msgspec import Struct

from launcher.errors import RequestError

Body = TypeVar("Body", bound=Struct)
_FIELD = re.compile(r" - at `\$\.(\w+)")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyDecoder(Generic[Body]):
    """Decodes bodies of one type.

    Fields that the type does not have are ignored, since clients send extensions of other servers, but not silently:
    their names are returned with the body.
    """

    def __init__(self, body_type: type[Body]) -> None:
        strict = msgspec.defstruct(f"Strict{body_type.__name__}", [], bases=(body_type,), forbid_unknown_fields=True)
        self._fields = frozenset(body_type.__struct_fields__)
        self._strict = msgspec.json.Decoder(cast("type[Body]", strict)).decode
        self._lenient = msgspec.json.Decoder(body_type).decode
        self._names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def decode(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The decoded body and the names of the fields that were ignored. Raises ``RequestError``."""
        if not body:
            raise RequestError("the body is empty; send a JSON object", code="invalid_json")
        try:
            return self._strict(body), ()
        except Exception:
            return self._decode_leniently(body)

    def _decode_leniently(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The slow path: the body has unknown fields, or it is wrong and the error must be explained."""
        try:
            decoded = self._lenient(body)
            return decoded, self.ignored_fields(body, decoded)
        except msgspec.ValidationError as error:
            field = _FIELD.search(str(error))
            param = field.group(1) if field else None
            raise RequestError(f"the body is invalid: {error}", code="invalid_type", param=param) from error
        except UnicodeDecodeError as error:
            reason = f"the body is not valid UTF-8: {error.reason} at byte {error.start}"
            raise RequestError(reason, code="invalid_json") from error
        except RecursionError as error:
            raise RequestError("the body is nested too deeply", code="invalid_json") from error
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not valid JSON: {_explain(body, error)}", code="invalid_json") from error

    def ignored_fields(self, body: bytes, decoded: Body) -> Sequence[str]:
        """The names of the fields of a body that its type does not have."""
        return sorted(set(self._names(body)) - self._fields)


def _explain(body: bytes, error: msgspec.DecodeError) -> str:
    if _LONE_SURROGATE.search(body):
        return f"{error}; it contains a surrogate escape (\\ud800 to \\udfff) that is not part of a pair"
    return str(error)
