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
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tasks.routes import Prompt, RoutedPrompt
from launcher.errors import RequestError
from launcher.front.ascii_fast_path import Encoder
from launcher.front.input_names import InputNames
from launcher.front.input_reader import InputReader, Wait, await_future
from launcher.front.item_details import ItemDetails, Tokens, TypeIds
from launcher.front.pairs import Pair, PairLayout, PairTruncation, take
from launcher.front.windows import ContextWindow, Windows
from launcher.options import FrontOptions
from launcher.options.choices import Task

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
# The tasks whose results refer to places in the texts.
SPAN_TASKS: frozenset[Task] = frozenset({"tag"})
# Characters of one call in which texts are repeated: a prompt, a query or a label for each item.
MAX_REPEATED_CHARACTERS = 8 * 1024 * 1024

Ids = Sequence[int] | npt.NDArray[np.int64]
Text = str | Pair


@dataclass(slots=True)  # not frozen, which makes an instance take a microsecond longer
class Tokenized:
    """The items of a request as int32 ids, the total number of tokens, and the indices of truncated inputs.

    For the tasks in ``SPAN_TASKS``, ``spans`` holds the character offsets of each text's tokens: int32, tokens × 2,
    start and end in code points, end exclusive; -1 for added special tokens. For pairs of texts, ``sides`` tells in
    which text they are: int8, 0 or 1 for each token; -1 for added special tokens. Empty for other tasks, and for inputs
    of ids.

    ``texts`` are those that inputs of another tokenizer's ids were decoded to; None for other inputs.

    ``details`` is what the items have besides their ids. ``windows`` is the number of items of each input, if an input
    has several.
    """

    items: list[Tokens]
    tokens: int
    truncated: tuple[int, ...] = ()
    spans: Sequence[npt.NDArray[np.int32]] = ()
    details: ItemDetails | None = None
    texts: Sequence[str] | None = None
    sides: Sequence[npt.NDArray[np.int8]] = ()
    windows: tuple[int, ...] = ()


@dataclass(slots=True)
class _Request:
    """How the inputs of a call are tokenized. ``typed``: whether items have token types."""

    truncate: bool
    names: InputNames
    typed: bool
    truncation: PairTruncation = "longest_first"


class FrontTokenizer(InputReader):
    """Tokenizes for one model. Texts get the special tokens of the model; token ids are used unchanged.

    ``text_characters`` is the maximum length of a text.
    """

    def __init__(self, model_info: ModelInfo, *, text_characters: int, threads: int = DEFAULT_THREADS) -> None:
        super().__init__(threads)
        # The tokenizer's own thread pool would run on the cores of the workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._with_spans = model_info.task in SPAN_TASKS
        self._encoder = Encoder(model_info, offsets=self._with_spans or model_info.task == "question-answering")
        self.vocabulary = self._encoder.tokenizer
        self._max_length = model_info.max_length
        self._vocab_size = model_info.vocab_size
        self._without_rows = {id: text for text, id in model_info.tokens_without_rows.items()}
        self._text_characters = text_characters
        self._default_prompt = model_info.default_prompt
        self._pools_prompt = model_info.include_prompt
        self._prompt_length = lru_cache(KNOWN_PROMPTS)(self._count_prompt)
        self._second_route: FrontTokenizer | None = None
        if model_info.routes is not None:
            second = model_info.routes.model_info
            self._second_route = FrontTokenizer(second, text_characters=text_characters, threads=1)
        added, pair = self._encoder.encode(["a", ("a", "a")])
        self._closing_tokens = _closing_tokens(added)
        self._pair_layout = PairLayout.of(pair)
        self._token_types = model_info.token_types
        typed = model_info.sends_token_types and model_info.token_types > 0
        self._typed_texts, self._typed_pairs = typed and any(added.type_ids), typed and any(pair.type_ids)
        self._no_pairs = self._why_no_pairs(max(pair.type_ids, default=0))
        self.special_ids = frozenset(
            id for id, special in zip(added.ids, added.special_tokens_mask, strict=True) if special
        )

    def close(self) -> None:
        """See the base class."""
        super().close()
        if self._second_route is not None:
            self._second_route.close()

    async def texts(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        field: str | InputNames = "input",
        prompt: Prompt | None = None,
        wait: Wait = await_future,
    ) -> Tokenized:
        """The token ids of ``texts``. Raises ``RequestError`` naming ``field`` for a text that cannot be used.

        ``prompt`` is prepended to each text; without one, the model's default prompt is. A ``RoutedPrompt`` chooses the
        route; without one, texts take the first.

        A text of more tokens than the model accepts is rejected, or with ``truncate`` cut at its end, keeping the
        special tokens, and reported. ``wait`` awaits the work of a thread and may cancel it.
        """
        names = _names(field, len(texts))
        if isinstance(prompt, RoutedPrompt):
            if prompt.second and self._second_route is not None:
                return await self._second_texts(texts, truncate, names, prompt.text, wait)
            prompt = prompt.text
        characters = self._check_texts(texts, names)
        prompt = self._default_prompt if prompt is None else prompt
        if prompt:
            characters += len(prompt) * len(texts)
            _check_total(characters, names)
            texts = [prompt + text for text in texts]
        request = _Request(truncate, names, self._typed_texts)
        inline = characters + INPUT_OVERHEAD * len(texts) <= INLINE_CHARACTERS
        if inline:
            tokenized = self._tokenize(texts, request)
        else:
            tokenized = await self._tokenize_in_thread(texts, request, wait)
        if not prompt or self._pools_prompt:
            return tokenized
        count = self._prompt_length
        length = count(prompt) if inline else await wait(self.in_thread(len(texts), count, prompt))
        details = tokenized.details or ItemDetails()
        return replace(tokenized, details=replace(details, prompt_lengths=(length,) * len(texts)))

    async def _second_texts(
        self, texts: Sequence[str], truncate: bool, names: InputNames, prompt: str, wait: Wait
    ) -> Tokenized:
        """The token ids of texts of the second route."""
        assert self._second_route is not None, "only models with routes have a second one"
        self.pending += len(texts)
        try:
            tokenized = await self._second_route.texts(texts, truncate=truncate, field=names, prompt=prompt, wait=wait)
        finally:
            self.pending -= len(texts)
        return replace(tokenized, details=replace(tokenized.details or ItemDetails(), routes=(1,) * len(texts)))

    def _count_prompt(self, prompt: str) -> int:
        """The number of leading tokens that pooling ignores: as in sentence-transformers 6, those of the prompt alone,
        cut like a text, without a special token at its end."""
        (encoding,) = self._encoder.encode([prompt])
        ids = encoding.ids if len(encoding) <= self._max_length else take(encoding.ids, self._cut(len(encoding)))
        return len(ids) - (bool(ids) and ids[-1] in self.special_ids | self._encoder.special_ids)

    async def pairs(
        self,
        pairs: Sequence[Text],
        *,
        truncate: bool = False,
        truncation: PairTruncation = "longest_first",
        field: str | InputNames = "input",
        wait: Wait = await_future,
    ) -> Tokenized:
        """As ``texts``, for pairs of texts, each of which becomes one item; single texts may be among them.

        With ``truncate``, tokens are removed at the end of the texts that ``truncation`` names.
        """
        names = _names(field, len(pairs))
        characters = self._check_pairs(pairs, names)
        request = _Request(truncate, names, self._typed_pairs, truncation)
        if characters + INPUT_OVERHEAD * len(pairs) <= INLINE_CHARACTERS:
            return self._tokenize(pairs, request)
        return await self._tokenize_in_thread(pairs, request, wait)

    async def windows(
        self,
        pairs: Sequence[Pair],
        *,
        limit: int,
        field: str | InputNames = "input",
        wait: Wait = await_future,
    ) -> Tokenized:
        """As ``pairs``, for questions and contexts: a long context becomes several items, of which there may be
        ``limit`` in total. ``spans`` are those of ``answer_spans``."""
        names = _names(field, len(pairs))
        self._check_pairs(pairs, names)
        stop = threading.Event()
        # In a thread even if the texts are short, which can have many windows.
        future = self.in_thread(len(pairs), self._tokenize_windows, pairs, names, limit, stop)
        future.add_done_callback(lambda _: stop.set())
        return await wait(future)

    def _tokenize_windows(
        self, pairs: Sequence[Pair], names: InputNames, limit: int, stop: threading.Event
    ) -> Tokenized:
        assert self._pair_layout is not None, "pairs are refused without a layout"
        found: list[ContextWindow] = []
        counts: list[int] = []
        for index, pair in enumerate(pairs):
            if stop.is_set():  # the request was cancelled
                raise CancelledError
            (encoding,) = self._encode([pair], names, index)
            try:
                windows = Windows(encoding, self._pair_layout, self._max_length)
            except ValueError as error:
                raise RequestError(
                    f"{names.of_half(index, 0)} leaves no room for its context: {error}",
                    code="too_long",
                    param=names.field,
                ) from error
            if len(found) + len(windows) > limit:
                raise RequestError(
                    f"{names.of_half(index, 1)} is read in {len(windows)} windows, and all contexts in more than "
                    f"{limit}, the limit per request; send shorter contexts or questions, or several requests",
                    status=413,
                    code="too_many_windows",
                    param=names.field,
                )
            for window in windows if self._without_rows else ():
                self._check_rows(window.ids, names, index)
            found += windows
            counts.append(len(windows))
        items = [window.ids for window in found]
        types = [window.type_ids for window in found] if self._typed_pairs else []
        details = ItemDetails(types) if any(map(np.any, types)) else None
        spans = [window.spans for window in found]
        return Tokenized(items, sum(map(len, items)), (), spans, details, windows=tuple(counts))

    async def _tokenize_in_thread(self, texts: Sequence[Text], request: _Request, wait: Wait) -> Tokenized:
        stop = threading.Event()
        future = self.in_thread(len(texts), self._tokenize, texts, request, stop)
        future.add_done_callback(lambda _: stop.set())
        return await wait(future)

    async def ids(
        self,
        lists: Sequence[Ids],
        *,
        type_ids: Sequence[Sequence[int]] = (),
        truncate: bool = False,
        field: str = "input",
        wait: Wait = await_future,
    ) -> Tokenized:
        """Token ids from the client, used unchanged: no special tokens are added or required.

        Clients that send ids have the model's tokenizer, which has added the special tokens. (vLLM does the same.) With
        ``truncate`` a list that is too long keeps its first ids. ``type_ids`` has the token types of each list.
        """
        if sum(map(len, lists)) + INPUT_OVERHEAD * len(lists) <= INLINE_IDS:
            return self._take_ids(lists, type_ids, truncate, field)
        return await wait(self.in_thread(len(lists), self._take_ids, lists, type_ids, truncate, field))

    # ------------------------------------------------------------------- texts

    def _why_no_pairs(self, largest_type: int) -> str | None:
        """Why pairs of texts cannot be tokenized for this model; None if they can."""
        if self._pair_layout is None:
            return "this model takes no pairs of texts: its tokenizer does not put the first text before the second"
        if self._typed_pairs and largest_type >= self._token_types:
            return (
                f"this model takes no pairs of texts: its tokenizer sets token types up to {largest_type}, but the "
                f"model has {self._token_types} (type_vocab_size)"
            )
        return None

    def _check_texts(self, texts: Sequence[str], names: InputNames) -> int:
        characters = 0
        for index, text in enumerate(texts):
            length = len(text)
            characters += length
            if not 0 < length <= self._text_characters:
                self._check_text(text, names, index)
        return characters

    def _check_pairs(self, pairs: Sequence[Text], names: InputNames) -> int:
        """The number of characters of pairs of texts. Raises ``RequestError`` if they cannot be used."""
        if self._no_pairs:
            raise RequestError(self._no_pairs, code="pairs_not_supported", param=names.field)
        characters = 0
        for index, pair in enumerate(pairs):
            if isinstance(pair, str):
                characters += self._check_text(pair, names, index)
            else:
                characters += sum(self._check_text(text, names, index, side) for side, text in enumerate(pair))
        _check_total(characters, names)
        return characters

    def _check_text(self, text: str, names: InputNames, index: int, side: int | None = None) -> int:
        """The number of characters of a text, which is a whole input, or one side of a pair."""
        length = len(text)
        if 0 < length <= self._text_characters:
            return length
        name = names.of(index) if side is None else names.of_half(index, side)
        if not length:
            raise RequestError(f"{name} is an empty string; omit it", code="empty_input", param=names.field)
        raise RequestError(
            f"{name} has {length} characters; the limit is {self._text_characters}",
            code="too_long",
            param=names.field,
        )

    def _tokenize(self, texts: Sequence[Text], request: _Request, stop: threading.Event | None = None) -> Tokenized:
        found = _Items()
        with_more = self._with_spans or request.typed
        for chunk in _chunks(texts):
            if stop is not None and stop.is_set():  # the request was cancelled
                raise CancelledError
            for text, encoding in zip(chunk, self._encode(chunk, request.names, len(found.ids)), strict=True):
                ids, kept = encoding.ids, None
                if not 0 < len(ids) <= self._max_length and (
                    kept := self._kept(text, encoding, request, len(found.ids))
                ):
                    found.truncated.append(len(found.ids))
                    ids = take(ids, kept)
                found.tokens += len(ids)
                found.ids.append(np.array(ids, dtype=np.int32))
                if with_more:
                    self._add_more(found, text, encoding, kept, typed=request.typed)
        if self._without_rows:
            for index, item in enumerate(found.ids):
                self._check_rows(item, request.names, index)
        details = ItemDetails(found.type_ids) if found.type_ids and any(map(np.any, found.type_ids)) else None
        return Tokenized(found.ids, found.tokens, tuple(found.truncated), found.spans, details, sides=found.sides)

    def _kept(self, text: Text, encoding: Encoding, request: _Request, index: int) -> tuple[range, ...] | None:
        """The tokens that remain of a text or pair that has too many; None if all do."""
        names, total = request.names, len(encoding)
        if not total:
            raise RequestError(f"{names.of(index)} has no tokens for this model", code="empty_input", param=names.field)
        if isinstance(text, str):
            self._check_truncate(request.truncate, total, names, index)
            return self._cut(total)
        self._check_truncate(request.truncate, total, names, index)
        assert self._pair_layout is not None, "pairs are refused without a layout"
        kept = self._pair_layout.kept(encoding, self._max_length, request.truncation)
        if kept is None:
            name = names.of_half(index, 1) if request.truncation == "only_second" else names.of_half(index, 0)
            raise RequestError(
                f"{name} is too short to be truncated: the pair has {total} tokens, but the model accepts at most "
                f"{self._max_length} tokens; shorten the other text",
                code="too_long",
                param=names.field,
            )
        return kept

    def _cut(self, total: int) -> tuple[range, ...]:
        """The first tokens and the closing special ones, of a text of ``total`` tokens. (``Encoding.truncate`` would
        keep the overflow in memory.)"""
        closing = min(self._closing_tokens, self._max_length)
        return range(self._max_length - closing), range(total - closing, total)

    def _add_more(
        self, found: _Items, text: Text, encoding: Encoding, kept: tuple[range, ...] | None, *, typed: bool
    ) -> None:
        """Add what an item has besides its ids. ``kept`` are the tokens that truncation leaves; None: all."""
        if typed:
            type_ids = encoding.type_ids
            found.type_ids.append(np.array(take(type_ids, kept) if kept else type_ids, dtype=np.uint8))
        if self._with_spans:
            found.spans.append(_spans(encoding, kept))
            if not isinstance(text, str):
                found.sides.append(_sides(encoding, kept))

    def _check_rows(self, ids: npt.NDArray[np.int32], names: InputNames, index: int) -> None:
        """Raise ``RequestError`` for a token without a row in the model's table of embeddings."""
        highest = int(ids.max())
        if highest >= self._vocab_size:
            raise RequestError(
                f"{names.of(index)} contains {self._without_rows.get(highest, highest)!r}, a token of which the model "
                "has no embedding; remove it",
                code="token_out_of_range",
                param=names.field,
            )

    def _encode(self, texts: list[Text], names: InputNames, first: int) -> list[Encoding]:
        """The encodings of some texts, of which the first has the index ``first`` in its request."""
        try:
            return self._encoder.encode(texts)
        except Exception as error:  # the Rust library raises plain Exception for text that its model cannot encode
            reasons = (self._why_not(text, names, index) for index, text in enumerate(texts, first))
            name, reason = next(filter(None, reasons), (names.of(first), str(error)))
            raise RequestError(
                f"{name} cannot be tokenized: {reason}", code="untokenizable", param=names.field
            ) from error

    def _why_not(self, text: Text, names: InputNames, index: int) -> tuple[str, str] | None:
        """The name of this text or pair, and why it alone cannot be encoded; None if it can."""
        for side, half in enumerate((text,) if isinstance(text, str) else text):
            name = names.of(index) if isinstance(text, str) else names.of_half(index, side)
            try:
                half.encode()
                self._encoder.encode([half])
            except UnicodeEncodeError as error:  # only in texts of a program: no JSON that is accepted has them
                shown = f"{half[error.start]!a}, which is not valid Unicode"
                return name, f"character {error.start} is a lone surrogate, {shown}"
            except Exception as error:
                return name, str(error)
        return None

    # --------------------------------------------------------------------- ids

    def _take_ids(
        self, lists: Sequence[Ids], type_ids: Sequence[Sequence[int]], truncate: bool, field: str
    ) -> Tokenized:
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
        details = self._take_type_ids(lists, type_ids, field)
        return Tokenized(items, sum(map(len, items)), tuple(truncated), details=details)

    def _take_type_ids(self, lists: Sequence[Ids], type_ids: Sequence[Sequence[int]], field: str) -> ItemDetails | None:
        """The token types of lists of ids, cut like these; None if all are 0."""
        found: list[TypeIds] = []
        for index, (ids, types) in enumerate(zip(lists, type_ids, strict=bool(type_ids))):
            name = f"token_type_ids of {_names(field, len(lists)).of(index)}"
            if len(types) != len(ids):
                raise RequestError(
                    f"{name} has {len(types)} entries for {len(ids)} token ids; it must have one for each",
                    code="invalid_token_types",
                    param=field,
                )
            if min(types) < 0 or max(types) >= max(1, self._token_types):
                raise RequestError(
                    f"{name} must be from 0 to {max(0, self._token_types - 1)} for this model",
                    code="invalid_token_types",
                    param=field,
                )
            found.append(np.array(types[: self._max_length], dtype=np.uint8))
        return ItemDetails(found) if any(map(np.any, found)) else None

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


@dataclass(slots=True)
class _Items:
    """What is collected for ``Tokenized``."""

    ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    type_ids: list[TypeIds] = field(default_factory=list)
    spans: list[npt.NDArray[np.int32]] = field(default_factory=list)
    sides: list[npt.NDArray[np.int8]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    tokens: int = 0


def _spans(encoding: Encoding, kept: tuple[range, ...] | None) -> npt.NDArray[np.int32]:
    """The character offsets of the tokens that are kept; None: all."""
    if kept is None:
        count = len(encoding)
        flat = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * count)
        spans = flat.reshape(count, 2)
        spans[np.array(encoding.special_tokens_mask, dtype=np.bool_)] = -1
        return spans
    # One by one: building the list of all offsets would hold the GIL for long if most of them are cut off.
    spans = np.full((sum(map(len, kept)), 2), -1, dtype=np.int32)
    for place, token in enumerate(chain.from_iterable(kept)):
        if (span := encoding.token_to_chars(token)) is not None:
            spans[place] = span
    return spans


def _sides(encoding: Encoding, kept: tuple[range, ...] | None) -> npt.NDArray[np.int8]:
    """The text of a pair that each of the tokens is in, -1 for added special tokens."""
    tokens = range(len(encoding)) if kept is None else chain.from_iterable(kept)
    sides = (encoding.token_to_sequence(token) for token in tokens)
    return np.array([-1 if side is None else side for side in sides], dtype=np.int8)


def _chunks(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """The texts in chunks: the result of one call to the Rust library is freed at once, while holding the GIL."""
    chunk: list[Text] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check_total(characters: int, names: InputNames) -> None:
    if characters > MAX_REPEATED_CHARACTERS:
        raise RequestError(
            f"'{names.field}' have {characters} characters, counting a text as often as it is part of an input; the "
            f"limit is {MAX_REPEATED_CHARACTERS} per request; send several requests, or shorter texts",
            status=413,
            code="too_many_characters",
            param=names.field,
        )


def _names(field: str | InputNames, count: int) -> InputNames:
    return field if isinstance(field, InputNames) else _names_of(field, count == 1)


@lru_cache(16)  # each request needs them, although only errors use them
def _names_of(field: str, lone: bool) -> InputNames:
    return InputNames(field, lone=lone)


def _closing_tokens(encoding: Encoding) -> int:
    """The number of special tokens at the end of an encoding."""
    added = encoding.special_tokens_mask
    return len(added) - 1 - max((place for place, special in enumerate(added) if not special), default=len(added) - 1)
