"""Turns the inputs of requests into items, in a few threads.

``tokenizer`` does it for texts, and ``custom_items`` for items of a custom class.

Separate because routes and the engine work with either. What an item is does not belong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from tokenizers import Tokenizer

from launcher.core.tasks.routes import Prompt
from launcher.errors import RequestError

if TYPE_CHECKING:
    from launcher.front.input_names import InputNames
    from launcher.front.pairs import Pair, PairTruncation
    from launcher.front.tokenizer import Text, Tokenized

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Wait(Protocol):
    """Waits for the work of a thread, and may cancel it."""

    def __call__(self, future: asyncio.Future[Result], /) -> Awaitable[Result]:
        """The result of the work."""
        ...


async def await_future(future: asyncio.Future[Result]) -> Result:
    """Wait without a reason to cancel."""
    return await future


class InputReader:
    """Reads inputs of one model. A kind of inputs that the model does not take is refused with ``RequestError``.

    ``pending`` is the number of inputs that wait for a thread or are being processed in one. ``special_ids`` are the
    ids of the special tokens that texts get. ``vocabulary``, which only readers of texts have, is the tokenizer of the
    Rust library, for its tokens and for decoding.
    """

    special_ids: frozenset[int] = frozenset()
    vocabulary: Tokenizer

    def __init__(self, threads: int) -> None:
        self.pending = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def in_thread(
        self, inputs: int, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> asyncio.Future[Result]:
        """Call ``function`` in a thread, for this number of inputs; a future that is cancelled early skips the call."""
        future = asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))
        self.pending += inputs
        future.add_done_callback(lambda _: self._ended(inputs))
        return future

    def _ended(self, inputs: int) -> None:
        self.pending -= inputs

    async def texts(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        field: str | InputNames = "input",
        prompt: Prompt | None = None,
        wait: Wait = await_future,
    ) -> Tokenized:
        """See ``FrontTokenizer.texts``."""
        raise _not_taken("texts")

    async def pairs(
        self,
        pairs: Sequence[Text],
        *,
        truncate: bool = False,
        truncation: PairTruncation = "longest_first",
        field: str | InputNames = "input",
        wait: Wait = await_future,
    ) -> Tokenized:
        """See ``FrontTokenizer.pairs``."""
        raise _not_taken("pairs of texts")

    async def windows(
        self, pairs: Sequence[Pair], *, limit: int, field: str | InputNames = "input", wait: Wait = await_future
    ) -> Tokenized:
        """See ``FrontTokenizer.windows``."""
        raise _not_taken("questions")

    async def ids(
        self,
        lists: Sequence[Any],
        *,
        type_ids: Sequence[Sequence[int]] = (),
        truncate: bool = False,
        field: str = "input",
        wait: Wait = await_future,
    ) -> Tokenized:
        """See ``FrontTokenizer.ids``."""
        raise _not_taken("token ids")


def _not_taken(what: str) -> RequestError:
    return RequestError(f"this model does not take {what}", code="invalid_type")
