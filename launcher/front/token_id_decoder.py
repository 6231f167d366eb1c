"""Decodes token ids of a tiktoken encoding, which OpenAI's tokenizers produce, to the texts that they stand for.

Separate because only ``--token-ids ENCODING`` needs it, with the optional package ``tiktoken``. The texts are tokenized
like any others, so nothing about the served model belongs here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launcher.errors import RequestError, UsageError
from launcher.front.input_names import InputNames
from launcher.front.tokenizer import INLINE_IDS, INPUT_OVERHEAD, Ids

if TYPE_CHECKING:
    from tiktoken import Encoding

INSTALL = "pip install 'launcher[tiktoken]'"
# tiktoken downloads without a timeout.
LOAD_SECONDS = 60.0
# Decoded in one call: about 1 ms with the interpreter lock held.
CHUNK_IDS = 16_000
BYTES_PER_CHARACTER = 4


class TokenIdDecoder:
    """Decodes lists of ids of one encoding. ``text_characters`` is the maximum length of a text."""

    def __init__(self, encoding: Encoding, *, text_characters: int) -> None:
        self._encoding = encoding
        self._text_bytes = BYTES_PER_CHARACTER * text_characters
        self._text_characters = text_characters

    @staticmethod
    def is_small(lists: Sequence[Ids]) -> bool:
        """Whether decoding takes so little time that it need not be done in a thread."""
        return sum(map(len, lists)) + INPUT_OVERHEAD * len(lists) <= INLINE_IDS

    def texts(self, lists: Sequence[Ids], field: str) -> list[str]:
        """The text of each list. Raises ``RequestError`` for an empty list, an id that the encoding does not have, and
        a text that is too long.

        Bytes that are not valid UTF-8, such as half of a character, become U+FFFD, as in ``tiktoken``.
        """
        names = InputNames(field, lone=len(lists) == 1)
        return [self._text(ids, names, index) for index, ids in enumerate(lists)]

    def _text(self, ids: Ids, names: InputNames, index: int) -> str:
        if not len(ids):
            raise RequestError(
                f"{names.of(index)} is an empty list of token ids; omit it", code="empty_input", param=names.field
            )
        found = bytearray()
        for first in range(0, len(ids), CHUNK_IDS):
            chunk = ids[first : first + CHUNK_IDS]
            try:
                found += self._encoding.decode_bytes(chunk if isinstance(chunk, list) else list(map(int, chunk)))
            except (KeyError, OverflowError):
                raise self._unknown(chunk, names, index) from None
            if len(found) > self._text_bytes:
                raise RequestError(
                    f"{names.of(index)} decodes to more than {self._text_characters} characters, the limit of a text",
                    code="too_long",
                    param=names.field,
                )
        return found.decode("utf-8", errors="replace")

    def _unknown(self, ids: Ids, names: InputNames, index: int) -> RequestError:
        """The error for the first of ``ids`` that the encoding does not have."""
        wrong = next(int(id) for id in ids if not self._has(int(id)))
        shown = str(wrong) if abs(wrong) < 10**20 else "of more than 20 digits"
        return RequestError(
            f"{names.of(index)} contains the token id {shown}, which is not in the encoding {self._encoding.name}; "
            f"its ids are 0 to {self._encoding.max_token_value}",
            code="token_out_of_range",
            param=names.field,
        )

    def _has(self, id: int) -> bool:
        try:
            self._encoding.decode_single_token_bytes(id)
        except (KeyError, OverflowError):
            return False
        return True


def load_decoder(token_ids: str, *, text_characters: int) -> TokenIdDecoder | None:
    """The decoder for a value of ``--token-ids``; None for refuse and accept.

    Raises ``UsageError`` if tiktoken is not installed, does not have the encoding, or cannot load it.
    """
    if token_ids in ("refuse", "accept"):
        return None
    if importlib.util.find_spec("tiktoken") is None:
        raise UsageError(f"--token-ids {token_ids}: the package tiktoken is not installed; run: {INSTALL}")
    import tiktoken

    if token_ids not in (names := tiktoken.list_encoding_names()):
        raise UsageError(
            f"--token-ids {token_ids}: tiktoken {tiktoken.__version__} has the encodings {', '.join(sorted(names))}; "
            f"for others, install a newer version"
        )
    encoding = _load(token_ids)
    encoding.decode_bytes([0])
    return TokenIdDecoder(encoding, text_characters=text_characters)


def _load(name: str) -> Encoding:
    """The encoding, from tiktoken's cache or, if it is not there, from the network."""
    import tiktoken

    outcome: list[Any] = [f"no response in {LOAD_SECONDS:g} s"]

    def load() -> None:
        try:
            outcome.append(tiktoken.get_encoding(name))
        except Exception as error:  # of the network, the disk, or the contents
            outcome.append(error)

    # In a thread that does not keep the process alive, because a download may never end.
    thread = threading.Thread(target=load, name="load-encoding", daemon=True)
    thread.start()
    thread.join(LOAD_SECONDS)
    found = outcome[-1]
    if isinstance(found, tiktoken.Encoding):
        return found
    raise UsageError(f"--token-ids {name}: tiktoken cannot load the encoding: {_reason(found)}") from (
        found if isinstance(found, Exception) else None
    )


def _reason(found: Any) -> str:
    """Why an encoding was not loaded, and where its file belongs if it could not be downloaded."""
    url = getattr(getattr(found, "request", None), "url", None)
    if url is None:
        return f"{found}; set TIKTOKEN_CACHE_DIR to a folder with its file, or provide a network"
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    # The names of cached files, as in tiktoken/load.py.
    name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    how = "" if folder else ", and set TIKTOKEN_CACHE_DIR to that folder"
    place = folder or os.path.join(tempfile.gettempdir(), "tiktoken")  # noqa: PTH118
    return f"{url} could not be downloaded ({type(found).__name__}); store that file as {place}/{name}{how}"
