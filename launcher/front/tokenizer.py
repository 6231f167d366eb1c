"""Tokenizes texts, with limits that keep one request from delaying the others.

The front tokenizes because routing needs true lengths. It uses the Rust tokenizer alone (``ascii_fast_path``), without
transformers. Small inputs are tokenized inline, large ones in a thread: a thread costs about 0.1 ms, and the event loop
must not be blocked for more than a few milliseconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import RequestError
from launcher.front.ascii_fast_path import Encoder
from launcher.front.input_reader import InputReader, Wait, await_future
from launcher.front.item_details import ItemDetails, Tokens
from launcher.options import FrontOptions

# About 2 ms of work: 0.27 µs per character, measured for English text with a WordPiece vocabulary.
INLINE_CHARACTERS = 8_000
# The fixed cost of one text or one list of ids, in characters or ids.
INPUT_OVERHEAD = 20
# About 2 ms of work: 0.1 µs per id, plus the fixed cost of each list.
INLINE_IDS = 16_000
# Tokenized in one call; freeing the result holds the GIL for about 1 ms.
CHUNK_CHARACTERS = 32_000
# Prompts whose length is kept; it is the same for every text.
KNOWN_PROMPTS = 64
DEFAULT_THREADS = FrontOptions().tokenizer_threads

Ids = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The items of a request as int32 ids, the total number of tokens, and the indices of truncated inputs.

    For taggers, ``spans`` holds the character offsets of each text's tokens: int32, tokens × 2, start and end in code
    points, end exclusive; -1 for added special tokens. Empty for other tasks, and for inputs of ids.

    ``details`` is what the items have besides their ids.
    """

    items: list[Tokens]
    tokens: int
    truncated: tuple[int, ...] = ()
    spans: Sequence[npt.NDArray[np.int32]] = ()
    details: ItemDetails | None = None


@dataclass(frozen=True, slots=True)
class InputNames:
    """How errors name inputs: ``field[index]``, counted from ``first``, or ``field`` alone for a ``lone`` one.

    ``truncate_hint`` tells the caller how to have long inputs truncated.
    """

    field: str
    first: int = 0
    lone: bool = False
    truncate_hint: str = 'send "truncate": true to truncate it'

    def of(self, index: int) -> str:
        """The name of the input with this index."""
        return f"'{self.field}'" if self.lone else f"'{self.field}[{self.first + index}]'"


class FrontTokenizer(InputReader):
    """Tokenizes for one model. Texts get the special tokens of the model; token ids are used unchanged.

    ``text_characters`` is the maximum length of a text.
    """

    def __init__(self, model_info: ModelInfo, *, text_characters: int, threads: int = DEFAULT_THREADS) -> None:
        super().__init__(threads)
        # The tokenizer's own thread pool would run on the cores of the workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._with_spans = model_info.task == "tag"
        self._encoder = Encoder(model_info, offsets=self._with_spans)
        self.vocabulary = self._encoder.tokenizer
        self._max_length = model_info.max_length
        self._vocab_size = model_info.vocab_size
        self._text_characters = text_characters
        self._default_prompt = model_info.default_prompt
        self._pools_prompt = model_info.include_prompt
        self._prompt_length = lru_cache(KNOWN_PROMPTS)(self._count_prompt)
        (added,) = self._encoder.encode(["a"])
        self._closing_tokens = _closing_tokens(added)
        self.special_ids = frozenset(
            id for id, special in zip(added.ids, added.special_tokens_mask, strict=True) if special
        )

    async def texts(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        field: str | InputNames = "input",
        prompt: str | None = None,
        wait: Wait = await_future,
    ) -> Tokenized:
        """The token ids of ``texts``. Raises ``RequestError`` naming ``field`` for a text that cannot be used.

        ``prompt`` is prepended to each text; without one, the model's default prompt is.

        A text of more tokens than the model accepts is rejected, or with ``truncate`` cut at its end, keeping the
        special tokens, and reported. ``wait`` awaits the work of a thread and may cancel it.
        """
        characters = self._check_texts(texts, field)
        prompt = self._default_prompt if prompt is None else prompt
        if prompt:
            characters += len(prompt) * len(texts)
            texts = [prompt + text for text in texts]
        if characters + INPUT_OVERHEAD * len(texts) <= INLINE_CHARACTERS:
            tokenized = self._tokenize(texts, truncate, field)
        else:
            stop = threading.Event()
            future = self.in_thread(len(texts), self._tokenize, texts, truncate, field, stop)
            future.add_done_callback(lambda _: stop.set())
            tokenized = await wait(future)
        if not prompt or self._pools_prompt:
            return tokenized
        lengths = (self._prompt_length(prompt),) * len(texts)
        return replace(tokenized, details=ItemDetails(prompt_lengths=lengths))

    def _count_prompt(self, prompt: str) -> int:
        """The number of leading tokens that pooling ignores: as in sentence-transformers 6, those of the prompt alone,
        cut like a text, without a special token at its end."""
        (encoding,) = self._encoder.encode([prompt])
        ids = encoding.ids if len(encoding) <= self._max_length else self._cut(encoding.ids)
        return len(ids) - (bool(ids) and ids[-1] in self._encoder.special_ids)

    async def ids(
        self, lists: Sequence[Ids], *, truncate: bool = False, field: str = "input", wait: Wait = await_future
    ) -> Tokenized:
        """Token ids from the client, used unchanged: no special tokens are added or required.

        Clients that send ids have the model's tokenizer, which has added the special tokens. (vLLM does the same.) With
        ``truncate`` a list that is too long keeps its first ids.
        """
        if sum(map(len, lists)) + INPUT_OVERHEAD * len(lists) <= INLINE_IDS:
            return self._take_ids(lists, truncate, field)
        return await wait(self.in_thread(len(lists), self._take_ids, lists, truncate, field))

    # ------------------------------------------------------------------- texts

    def _check_texts(self, texts: Sequence[str], field: str | InputNames) -> int:
        characters = 0
        for index, text in enumerate(texts):
            length = len(text)
            characters += length
            if 0 < length <= self._text_characters:
                continue
            names = _names(field, len(texts))
            name = names.of(index)
            if not length:
                raise RequestError(f"{name} is an empty string; omit it", code="empty_input", param=names.field)
            raise RequestError(
                f"{name} has {length} characters; the limit is {self._text_characters}",
                code="too_long",
                param=names.field,
            )
        return characters

    def _tokenize(
        self, texts: Sequence[str], truncate: bool, field: str | InputNames, stop: threading.Event | None = None
    ) -> Tokenized:
        items: list[npt.NDArray[np.int32]] = []
        spans: list[npt.NDArray[np.int32]] = []
        truncated: list[int] = []
        tokens = 0
        for chunk in _chunks(texts):
            if stop is not None and stop.is_set():  # the request was cancelled
                raise CancelledError
            for encoding in self._encode(chunk, _names(field, len(texts)), len(items)):
                ids = encoding.ids
                if not 0 < len(ids) <= self._max_length:
                    names, index = _names(field, len(texts)), len(items)
                    if not ids:
                        raise RequestError(
                            f"{names.of(index)} has no tokens for this model", code="empty_input", param=names.field
                        )
                    self._check_truncate(truncate, len(ids), names, index)
                    ids = self._cut(ids)
                    truncated.append(index)
                tokens += len(ids)
                items.append(np.array(ids, dtype=np.int32))
                if self._with_spans:
                    spans.append(self._spans(encoding, len(ids)))
        return Tokenized(items, tokens, tuple(truncated), spans)

    def _encode(self, texts: list[str], names: InputNames, first: int) -> list[Encoding]:
        """The encodings of some texts, of which the first has the index ``first`` in its request."""
        try:
            return self._encoder.encode(texts)
        except Exception as error:  # the Rust library raises plain Exception for text that its model cannot encode
            reasons = ((index, self._why_not(text)) for index, text in enumerate(texts, first))
            index, reason = next(((index, reason) for index, reason in reasons if reason), (first, str(error)))
            raise RequestError(
                f"{names.of(index)} cannot be tokenized: {reason}", code="untokenizable", param=names.field
            ) from error

    def _why_not(self, text: str) -> str | None:
        """Why this text alone cannot be encoded; None if it can."""
        try:
            text.encode()
            self._encoder.encode([text])
        except UnicodeEncodeError as error:  # only in texts of a program: no JSON that is accepted has them
            return f"character {error.start} is a lone surrogate, {text[error.start]!a}, which is not valid Unicode"
        except Exception as error:
            return str(error)
        return None

    def _cut(self, ids: list[int]) -> list[int]:
        """The first ids and the closing special ones. (``Encoding.truncate`` would keep the overflow in memory.)"""
        closing = min(self._closing_tokens, self._max_length)
        return ids[: self._max_length - closing] + ids[len(ids) - closing :]

    def _spans(self, encoding: Encoding, kept: int) -> npt.NDArray[np.int32]:
        """The character offsets of the tokens of a text that ``_cut`` keeps."""
        if kept == len(encoding):
            flat = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * kept)
            spans = flat.reshape(kept, 2)
            spans[np.array(encoding.special_tokens_mask, dtype=np.bool_)] = -1
            return spans
        # One by one: building the list of all offsets would hold the GIL for long if most of them are cut off.
        spans = np.full((kept, 2), -1, dtype=np.int32)
        for place in range(kept - min(self._closing_tokens, kept)):
            if (span := encoding.token_to_chars(place)) is not None:
                spans[place] = span
        return spans

    # --------------------------------------------------------------------- ids

    def _take_ids(self, lists: Sequence[Ids], truncate: bool, field: str) -> Tokenized:
        truncated: list[int] = []
        items: list[npt.NDArray[np.int32]] = []
        for index, ids in enumerate(lists):
            if not 0 < len(ids) <= self._max_length:
                names = _names(field, len(lists))
                if not len(ids):
                    raise RequestError(
                        f"{names.of(index)} is an empty list of token ids; omit it", code="empty_input", param=field
                    )
                self._check_truncate(truncate, len(ids), names, index)
                truncated.append(index)
            self._check_range(ids, index, len(lists), field)
            items.append(np.array(ids[: self._max_length], dtype=np.int32))
        return Tokenized(items, sum(map(len, items)), tuple(truncated))

    def _check_range(self, ids: Ids, index: int, count: int, field: str) -> None:
        if isinstance(ids, np.ndarray):
            lowest, highest = int(ids.min()), int(ids.max())
        else:
            lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= self._vocab_size:
            name = _names(field, count).of(index)
            wrong = lowest if lowest < 0 else highest
            shown = str(wrong) if abs(wrong) < 10**20 else "of more than 20 digits"
            raise RequestError(
                f"{name} contains the token id {shown}; the ids of this model are 0 to {self._vocab_size - 1}",
                code="token_out_of_range",
                param=field,
            )

    def _check_truncate(self, truncate: bool, tokens: int, names: InputNames, index: int) -> None:
        if truncate:
            return
        raise RequestError(
            f"{names.of(index)} has {tokens} tokens, but the model accepts at most {self._max_length}; "
            f"shorten it, or {names.truncate_hint}",
            code="too_long",
            param=names.field,
        )


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in chunks: the result of one call to the Rust library is freed at once, while holding the GIL."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _names(field: str | InputNames, count: int) -> InputNames:
    return field if isinstance(field, InputNames) else InputNames(field, lone=count == 1)


def _closing_tokens(encoding: Encoding) -> int:
    """The number of special tokens at the end of an encoding."""
    added = encoding.special_tokens_mask
    return len(added) - 1 - max((place for place, special in enumerate(added) if not special), default=len(added) - 1)
