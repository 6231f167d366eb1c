"""Decodes large bodies in short steps: the same results as ``BodyDecoder``, with token ids as arrays.

Separate because the JSON decoder holds the interpreter lock during each call: decoding 8 MiB of tiny entries would stop
the event loop for more than a second, whichever thread does it. So the inputs are first taken as raw JSON (2 ns per
byte) and counted, and decoded only if they are not too many, token ids in chunks. Items of custom classes stay raw;
those beyond the limit are skipped without an object for each. To be called in a thread. Nothing
that only small bodies need belongs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

from launcher.errors import RequestError
from launcher.front.http.body_decoder import Body, BodyDecoder
from launcher.front.http.inputs import InputObject, too_many_inputs

# Larger bodies are not decoded on the event loop; the worst case of this size takes 3 ms.
INLINE_BYTES = 64 * 1024
# The limit of everything but the inputs if some of the fields are unknown, and of another field that is a list.
OTHER_FIELDS_BYTES = 64 * 1024
# Decoded in one call: about 1 ms for token ids.
CHUNK_BYTES = 32 * 1024
_WHITESPACE = b" \t\r\n"

Ids = npt.NDArray[np.int64]


class LargeBodyDecoder(Generic[Body]):
    """Decodes large bodies of one type, with at most ``limit`` inputs in the field ``field``."""

    def __init__(self, body_type: type[Body], field: str, limit: int) -> None:
        self._body_type = body_type
        self._field = field
        self._limit = limit
        self._lists = {
            f.name: msgspec.json.Decoder(f.type).decode
            for f in msgspec.structs.fields(body_type)
            if f.name != field and _may_be_list(f.type)
        }
        fields = [
            (f.name, msgspec.Raw if f.name == field or f.name in self._lists else f.type, f.default)
            for f in msgspec.structs.fields(body_type)
        ]
        self._decoder = _RawInputsDecoder(msgspec.defstruct(f"Large{body_type.__name__}", fields, frozen=True), field)
        self._texts = msgspec.json.Decoder(list[str]).decode
        self._ids = msgspec.json.Decoder(list[int]).decode
        of_field = next(f.type for f in msgspec.structs.fields(body_type) if f.name == field)
        self._any = msgspec.json.Decoder(of_field).decode
        raw_items = of_field == list[msgspec.Raw] or list[msgspec.Raw] in get_args(of_field)  # plain or annotated
        self._raw_items = _first_raw_items(limit + 1) if raw_items else None
        typed = self._raw_items is None
        self._has_texts, self._has_token_ids = typed and self._accepts(b'[""]'), typed and self._accepts(b"[0]")
        self._has_objects = _has_struct(of_field)
        self._text_objects = msgspec.json.Decoder(list[_TextObject]).decode
        self._id_objects = msgspec.json.Decoder(list[_IdObject]).decode

    def _accepts(self, raw: bytes) -> bool:
        """Whether the field of the inputs can have this value."""
        try:
            self._any(raw)
        except msgspec.ValidationError:
            return False
        return True

    def decode(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The decoded body and the names of the fields that were ignored. Raises ``RequestError``."""
        decoded, ignored = self._decoder.decode(body)
        values = msgspec.structs.asdict(decoded)
        for name in self._lists:
            values[name] = self._other_list(name, values[name])
        try:
            values[self._field] = self._inputs(bytes(values[self._field]).strip(_WHITESPACE))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            kinds = "must be texts or token ids, all of one kind" if self._has_token_ids else "is invalid"
            reason = f"'{self._field}' {kinds}: {error}"
            raise RequestError(reason, code="invalid_type", param=self._field) from error
        except OverflowError as error:
            reason = f"'{self._field}' has a token id of more than 64 bits"
            raise RequestError(reason, code="token_out_of_range", param=self._field) from error
        return self._body_type(**values), ignored

    def _other_list(self, name: str, value: Any) -> Any:
        """The value of another field that may be a list; it is raw unless it is the default."""
        if not isinstance(value, msgspec.Raw):
            return value
        raw = bytes(value)
        if len(raw) > OTHER_FIELDS_BYTES:
            raise RequestError(
                f"'{name}' has {len(raw)} bytes, the limit is {OTHER_FIELDS_BYTES}",
                status=413,
                code="body_too_large",
                param=name,
            )
        try:
            return self._lists[name](raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RequestError(f"'{name}' is invalid: {error}", code="invalid_type", param=name) from error

    def _inputs(self, raw: bytes) -> Any:
        """A text, a list of texts, arrays of token ids, or raw items. ``raw`` is JSON whose syntax was checked."""
        if self._raw_items is not None:
            return self._list_of_raw(self._raw_items(raw))
        inside = raw[1:-1].strip(_WHITESPACE) if raw.startswith(b"[") else b""
        match inside[:1]:
            case b'"' if self._has_texts:
                return self._list_of_texts(raw)
            case b"[" if self._has_token_ids:
                return self._list_of_lists(inside)
            case b"{" if self._has_objects:
                return self._list_of_objects(raw)
            case first if self._has_token_ids and first and first in b"-0123456789":
                return [self._array(inside)]
        return self._any(raw)  # one text, an empty list, or a type that is rejected at its first entry

    def _list_of_raw(self, first: Any) -> list[msgspec.Raw]:
        """The items in ``first``, which has one more than are allowed, if there are as many."""
        items = [item for item in msgspec.structs.astuple(first) if item is not msgspec.UNSET]
        if len(items) > self._limit:
            raise too_many_inputs(self._field, f"more than {self._limit}", self._limit)
        return items

    def _list_of_texts(self, raw: bytes) -> list[str]:
        # The quote that opens a text never follows a backslash, a quote inside a text always does, and the one that
        # closes it may. So this counts between one and two per text, whatever the texts are.
        if raw.count(b'"') - raw.count(b'\\"') > 2 * self._limit:
            raise too_many_inputs(self._field, f"more than {self._limit}", self._limit)
        return self._texts(raw)

    def _list_of_objects(self, raw: bytes) -> Any:
        # An object has at most two keys and two texts; see _list_of_texts.
        if raw.count(b'"') - raw.count(b'\\"') > 8 * self._limit:
            raise too_many_inputs(self._field, f"more than {self._limit}", self._limit)
        if not self._has_token_ids:
            return self._any(raw)
        try:
            found = [InputObject(text=one.text, text_pair=one.text_pair) for one in self._text_objects(raw)]
        except msgspec.ValidationError as error:
            if b'"input_ids"' not in raw:
                raise error
            found = [
                InputObject(
                    input_ids=self._list_of_ids(one.input_ids),
                    token_type_ids=self._list_of_ids(one.token_type_ids) if one.token_type_ids else msgspec.UNSET,
                )
                for one in self._id_objects(raw)
            ]
        if len(found) > self._limit:
            raise too_many_inputs(self._field, str(len(found)), self._limit)
        return found

    def _list_of_ids(self, raw: msgspec.Raw) -> list[int]:
        value = bytes(raw).strip(_WHITESPACE)
        if not value.startswith(b"["):
            raise msgspec.ValidationError("token ids and token types must be lists of integers")
        return [id for chunk in _chunks(value[1:-1]) for id in self._ids(b"[%b]" % chunk)]

    def _list_of_lists(self, inside: bytes) -> list[Ids]:
        count = inside.count(b"[")
        if count > self._limit and b'"' not in inside:
            raise too_many_inputs(self._field, str(count), self._limit)
        *lists, rest = inside.split(b"]", self._limit)
        arrays: list[Ids] = []
        for one in lists:
            opened = one.lstrip(_WHITESPACE + b",")
            if not opened.startswith(b"["):
                raise msgspec.ValidationError(f"entry {len(arrays)} is not a list")
            arrays.append(self._array(opened[1:]))
        if rest.strip(_WHITESPACE):
            raise msgspec.ValidationError(f"entry {len(arrays)} is not a list")
        return arrays

    def _array(self, inside: bytes) -> Ids:
        """The token ids of one list, given the JSON between its brackets."""
        chunks = [np.array(self._ids(b"[%b]" % chunk), dtype=np.int64) for chunk in _chunks(inside)]
        return np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int64)


def _first_raw_items(count: int) -> Callable[[bytes], Any]:
    """Decodes the first ``count`` entries of a list as raw JSON, into a struct, and skips the others."""
    fields = [(f"item{index}", msgspec.Raw, msgspec.UNSET) for index in range(count)]
    return msgspec.json.Decoder(msgspec.defstruct("RawItems", fields, array_like=True, frozen=True)).decode


def _may_be_list(hint: Any) -> bool:
    return hint is Any or get_origin(hint) is list or any(map(_may_be_list, get_args(hint)))


def _has_struct(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, msgspec.Struct)) or any(map(_has_struct, get_args(hint)))


class _TextObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``InputObject`` of a text or a pair."""

    text: str
    text_pair: str | msgspec.UnsetType = msgspec.UNSET


class _IdObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``InputObject`` of token ids, whose lists are decoded in chunks."""

    input_ids: msgspec.Raw
    token_type_ids: msgspec.Raw = msgspec.Raw()


class _RawInputsDecoder(BodyDecoder[Any]):
    """Leaves the inputs as raw JSON, and looks for the names of unknown fields only if there cannot be many."""

    def __init__(self, body_type: type[Any], field: str) -> None:
        super().__init__(body_type)
        self._field = field

    def ignored_fields(self, body: bytes, decoded: Any) -> Sequence[str]:
        """See the base class. Raises ``RequestError`` if the other fields are too large."""
        others = len(body) - len(bytes(getattr(decoded, self._field)))
        if others > OTHER_FIELDS_BYTES:
            raise RequestError(
                f"the fields other than '{self._field}' have {others} bytes, the limit is {OTHER_FIELDS_BYTES}",
                status=413,
                code="body_too_large",
            )
        return super().ignored_fields(body, decoded)


def _chunks(inside: bytes) -> Iterator[bytes]:
    """The JSON between the brackets of a list of numbers, cut at commas."""
    start = 0
    while start < len(inside):
        end = inside.find(b",", start + CHUNK_BYTES)
        end = end if end >= 0 else len(inside)
        yield inside[start:end]
        start = end + 1
