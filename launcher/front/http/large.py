"""Large bodies, decoded in short steps: the same results as those of ``BodyDecoder``, with token ids as arrays.

Separate because the JSON decoder holds the interpreter's lock during each of its calls: 8 MiB of tiny entries would
stop the event loop for more than a second, from whichever thread they are decoded in. So the inputs are taken as they
stand (2 ns a byte), counted, and built only when they are not too many, ids a piece at a time. To be called in a
thread. What small bodies need must not enter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic

import msgspec
import numpy as np
import numpy.typing as npt

from launcher.errors import RequestError
from launcher.front.http.bodies import Body, BodyDecoder, Input, too_many_inputs

# What is decoded on the event loop: the worst that fits takes 3 ms.
INLINE_BYTES = 64 * 1024
# Of everything but the inputs. Names and values that we do not know are not worth more.
OTHER_BYTES = 64 * 1024
# Decoded in one call, about 1 ms of token ids.
PIECE_BYTES = 32 * 1024
_SPACE = b" \t\r\n"

Ids = npt.NDArray[np.int64]


class LargeBodyDecoder(Generic[Body]):
    """Decodes the large bodies of one route, whose inputs are in ``field``, at most ``limit`` of them."""

    def __init__(self, body_type: type[Body], field: str, limit: int) -> None:
        self._body_type = body_type
        self._field = field
        self._limit = limit
        fields = [
            (f.name, msgspec.Raw if f.name == field else f.type, f.default) for f in msgspec.structs.fields(body_type)
        ]
        self._decoder = _RawDecoder(msgspec.defstruct(f"Large{body_type.__name__}", fields, frozen=True), field)
        self._texts = msgspec.json.Decoder(list[str]).decode
        self._ids = msgspec.json.Decoder(list[int]).decode
        self._any = msgspec.json.Decoder(Input).decode

    def decode(self, body: bytes) -> tuple[Body, Sequence[str]]:
        """The body and the names of the fields that were ignored. Raises ``RequestError``."""
        decoded, ignored = self._decoder.decode(body)
        values = msgspec.structs.asdict(decoded)
        try:
            values[self._field] = self._inputs(bytes(values[self._field]).strip(_SPACE))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = f"'{self._field}' is not as expected, texts or token ids of one kind: {error}"
            raise RequestError(reason, code="invalid_type", param=self._field) from error
        except OverflowError as error:
            reason = f"'{self._field}' has a token id of more than 64 bits"
            raise RequestError(reason, code="token_out_of_range", param=self._field) from error
        return self._body_type(**values), ignored

    def _inputs(self, raw: bytes) -> Any:
        """A text, texts, or arrays of token ids. ``raw`` is valid JSON: it has been walked through already."""
        inside = raw[1:-1].strip(_SPACE) if raw.startswith(b"[") else b""
        match inside[:1]:
            case b'"':
                return self._list_of_texts(raw)
            case b"[":
                return self._list_of_lists(inside)
            case first if first and first in b"-0123456789":
                return [self._array(inside)]
        return self._any(raw)  # one text, nothing, or a kind that is refused at its first entry

    def _list_of_texts(self, raw: bytes) -> list[str]:
        # The quote that begins a text never follows a backslash, one inside a text always does, and the one at its
        # end may. So between one and two are counted for each text, whatever is in it.
        if raw.count(b'"') - raw.count(b'\\"') > 2 * self._limit:
            raise too_many_inputs(self._field, f"more than {self._limit}", self._limit)
        return self._texts(raw)

    def _list_of_lists(self, inside: bytes) -> list[Ids]:
        count = inside.count(b"[")
        if count > self._limit and b'"' not in inside:
            raise too_many_inputs(self._field, str(count), self._limit)
        *lists, rest = inside.split(b"]", self._limit)
        arrays: list[Ids] = []
        for one in lists:
            opened = one.lstrip(_SPACE + b",")
            if not opened.startswith(b"["):
                raise msgspec.ValidationError(f"entry {len(arrays)} is no list")
            arrays.append(self._array(opened[1:]))
        if rest.strip(_SPACE):
            raise msgspec.ValidationError(f"entry {len(arrays)} is no list")
        return arrays

    def _array(self, inside: bytes) -> Ids:
        """The ids of one list, given what stands between its brackets."""
        parts = [np.array(self._ids(b"[%b]" % piece), dtype=np.int64) for piece in _pieces(inside)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class _RawDecoder(BodyDecoder[Any]):
    """Leaves the inputs as they stand, and looks for names of unknown fields only where these cannot be many."""

    def __init__(self, body_type: type[Any], field: str) -> None:
        super().__init__(body_type)
        self._field = field

    def ignored(self, body: bytes, decoded: Any) -> Sequence[str]:
        """See the base class."""
        others = len(body) - len(bytes(getattr(decoded, self._field)))
        if others > OTHER_BYTES:
            raise RequestError(
                f"the fields beside '{self._field}' have {others} bytes, they may have {OTHER_BYTES}",
                status=413,
                code="body_too_large",
            )
        return super().ignored(body, decoded)


def _pieces(inside: bytes) -> Iterator[bytes]:
    """What stands in a list of numbers, cut at commas."""
    start = 0
    while start < len(inside):
        end = inside.find(b",", start + PIECE_BYTES)
        end = end if end >= 0 else len(inside)
        yield inside[start:end]
        start = end + 1
