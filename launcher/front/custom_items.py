"""Reads items of a custom class: JSON, whose size the class determines.

Separate from the tokenizer because such items have no tokens. What workers do with them does not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from launcher.core.protocol.model_info import ModelInfo
from launcher.custom_task import load_custom_task
from launcher.errors import RequestError
from launcher.front.input_names import InputNames
from launcher.front.input_reader import InputReader, Wait, await_future
from launcher.front.item_details import ItemDetails
from launcher.front.tokenizer import Tokenized

# Larger requests are read in a thread: ``size`` may take as long as it takes to decode the JSON.
INLINE_BYTES = 8_000
# Decoding an item holds the interpreter lock, so that all other requests wait: about 20 ms for this many numbers. An
# image of 224 × 224 pixels as numbers has 150,528.
MAX_VALUES = 200_000
# Each value but the first of a list or an object follows one of these.
_BEFORE_VALUES = (b",", b"[", b"{")
_decode = msgspec.json.Decoder().decode


class CustomItems(InputReader):
    """Reads the items of the class that ``model_info`` names. Raises ``UsageError`` if it cannot be imported."""

    def __init__(self, model_info: ModelInfo, *, threads: int) -> None:
        super().__init__(threads)
        self._task = load_custom_task(model_info.custom_class)
        self._max_size = model_info.max_length

    async def items(
        self, items: Sequence[bytes], *, field: str | InputNames = "inputs", wait: Wait = await_future
    ) -> Tokenized:
        """The items, each as JSON, with their sizes. Raises ``RequestError`` for one that the class refuses."""
        if sum(map(len, items)) <= INLINE_BYTES:
            return self._read(items, field)
        return await wait(self.in_thread(len(items), self._read, items, field))

    def _read(self, items: Sequence[bytes], field: str | InputNames) -> Tokenized:
        names = field if isinstance(field, InputNames) else InputNames(field, lone=len(items) == 1)
        sizes = [self._size(item, names, index) for index, item in enumerate(items)]
        # Workers get the bytes as they are.
        arrays = [np.frombuffer(item, dtype=np.uint8) for item in items]
        return Tokenized(arrays, sum(sizes), details=ItemDetails(sizes=sizes))

    def _size(self, item: bytes, names: InputNames, index: int) -> int:
        if len(item) > MAX_VALUES and _may_have_more_values(item):
            raise RequestError(
                f"{names.of(index)} has more than {MAX_VALUES} commas and brackets; a class can take large data as a "
                "string, such as base64",
                status=413,
                code="too_many_values",
                param=names.field,
            )
        try:
            size = self._task.size(_decode(item))
        except Exception as error:  # of the user's code, for data of a client
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise RequestError(
                f"{names.of(index)} is invalid: {reason}", code="invalid_input", param=names.field
            ) from error
        if size > self._max_size:
            raise RequestError(
                f"{names.of(index)} has the size {size}; the limit is {self._max_size}",
                code="too_long",
                param=names.field,
            )
        if size < 1:
            raise RequestError(f"{names.of(index)} is empty", code="empty_input", param=names.field)
        return size


def _may_have_more_values(item: bytes) -> bool:
    """Whether valid JSON has more than ``MAX_VALUES`` values or, within lists and objects, strings that look so.

    Looking into strings would take longer than decoding."""
    return not item.lstrip().startswith(b'"') and sum(map(item.count, _BEFORE_VALUES)) > MAX_VALUES
