"""``AsyncEngine``: the Python API for programs with an event loop, on which it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from launcher.api.options import DEFAULT_MODEL, serve_options
from launcher.api.pairs import (
    ANSWER_INPUTS,
    CLASSIFY_INPUTS,
    RERANK_INPUTS,
    RankedDocument,
    Ranking,
    ZeroShot,
    answers,
)
from launcher.api.progress import progress_bar
from launcher.api.results import (
    Decode,
    Entity,
    Vectors,
    concatenate,
    custom_results,
    entities,
    filled_masks,
    label_scores,
    sparse_vectors,
    token_vectors,
    vectors,
)
from launcher.api.setup import NO_COPY, EngineSetup, prepare_engine
from launcher.core.planning.plan import Plan
from launcher.core.tasks.entities import Aggregation
from launcher.core.tasks.prompts import choose_prompt
from launcher.core.tasks.routes import Prompt, choose_route
from launcher.engine.session import CLOSED, Computed, PairInputs, Session
from launcher.engine.streaming import Chunker, chunk_limit, in_order_async
from launcher.errors import UsageError
from launcher.front.tasks.answers import DEFAULT_ANSWER_TOKENS, Answer
from launcher.front.tasks.answers import DEFAULT_TOP_K as ANSWERS
from launcher.front.tasks.filled_masks import DEFAULT_TOP_K, FilledMask
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tasks.sparse_vectors import SparseVector
from launcher.front.tasks.zero_shot import DEFAULT_TEMPLATE
from launcher.front.tokenizer import Text
from launcher.options.choices import Task

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from launcher.api.keywords import EngineKeywords

Result = TypeVar("Result")
Texts = Iterable[str] | AsyncIterable[str]
TextsOrPairs = Iterable[Text] | AsyncIterable[Text]

# The tasks whose results are texts, spans or JSON, and the values that are decoded on the loop: at most a few ms.
SLOW_TO_DECODE: frozenset[Task] = frozenset({"fill-mask", "question-answering", "tag", "custom"})
INLINE_VALUES = 5_000


class AsyncEngine:
    """``Engine`` on the running asyncio loop: the same methods, as coroutines and asynchronous iterators.

    ``async with AsyncEngine("demo", instances=2) as engine: vectors = await engine.embed(texts)``. Texts may also come
    from an asynchronous iterator. Call all methods in the thread of the loop, which starts the workers: the kernel
    kills them when this thread ends.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, **options: Unpack[EngineKeywords]) -> None:
        """Check the options; nothing is started. Raises ``UsageError``."""
        serve_options(model, options)
        self._model = model
        self._options = options
        self._setup: EngineSetup | None = None
        self._session: Session | None = None
        self._starting = False
        self._closed = False

    async def __aenter__(self) -> Self:
        """Start, and return the engine itself."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As ``close``."""
        await self.close()

    def __reduce__(self) -> NoReturn:
        """An engine cannot be copied to another process."""
        raise TypeError(NO_COPY)

    async def start(self) -> None:
        """Plan, start the instances and wait until they are ready. Raises any ``LauncherError``."""
        if self._starting or self._session is not None:
            raise UsageError("the engine was already started; create another one")
        self._starting = True
        try:
            # Reading the machine and trying the bindings blocks for a second or so.
            self._setup = await asyncio.to_thread(prepare_engine, self._model, self._options)
        finally:
            self._starting = False
        if self._closed:
            raise UsageError(CLOSED)
        self._session = self._setup.session()
        await self._session.start()

    async def close(self) -> None:
        """Finish the work of other tasks, stop the instances, and return when all have exited.

        Closing again does nothing.
        """
        self._closed = True
        if self._session is not None:
            await self._session.close()

    @property
    def plan(self) -> Plan:
        """The cores of each instance, with the reasons."""
        return self._started.prepared.plan

    def info(self) -> dict[str, Any]:
        """Where each instance runs, and the results of the verification: the body of ``GET /info``."""
        return self._open_session.engine.info()

    # ------------------------------------------------------------------- tasks

    async def embed(
        self,
        texts: str | Texts,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors:
        """See ``Engine.embed``."""
        model = self._started.model_info
        decode = vectors(model)
        chosen = choose_route(model, route, prompt, prompt_name)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate, chosen)
        parts = [computed.results async for computed in self._computed(texts, truncate, progress, chosen)]
        return concatenate(parts, model)

    def embed_stream(
        self,
        texts: Texts,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[Vectors]:
        """See ``Engine.embed_stream``."""
        model = self._started.model_info
        return self._stream(texts, vectors(model), truncate, progress, choose_route(model, route, prompt, prompt_name))

    @overload
    async def classify(self, texts: str, *, truncate: bool = False, progress: bool = False) -> list[LabelScore]: ...  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
    @overload
    async def classify(
        self, texts: TextsOrPairs, *, truncate: bool = False, progress: bool = False
    ) -> list[list[LabelScore]]: ...
    async def classify(
        self, texts: str | TextsOrPairs, *, truncate: bool = False, progress: bool = False
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """See ``Engine.classify``."""
        decode = label_scores(self._started.model_info)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate)
        return [result async for result in self._stream(texts, decode, truncate, progress, pairs=CLASSIFY_INPUTS)]

    def classify_stream(
        self, texts: TextsOrPairs, *, truncate: bool = False, progress: bool = False
    ) -> AsyncIterator[list[LabelScore]]:
        """See ``Engine.classify_stream``."""
        return self._stream(texts, label_scores(self._started.model_info), truncate, progress, pairs=CLASSIFY_INPUTS)

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        raw_scores: bool = False,
        truncate: bool = False,
    ) -> list[RankedDocument]:
        """See ``Engine.rerank``."""
        ranking = Ranking.of(
            self._started.model_info,
            query,
            documents,
            top_k=top_k,
            return_documents=return_documents,
            raw_scores=raw_scores,
        )
        parts = self._computed(ranking.pairs(), truncate, progress=False, pairs=RERANK_INPUTS)
        return ranking.result([computed.results async for computed in parts])

    @overload
    async def zero_shot(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self,
        texts: str,
        labels: str | Iterable[str],
        *,
        hypothesis_template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[LabelScore]: ...
    @overload
    async def zero_shot(
        self,
        texts: Texts,
        labels: str | Iterable[str],
        *,
        hypothesis_template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[LabelScore]]: ...
    async def zero_shot(
        self,
        texts: str | Texts,
        labels: str | Iterable[str],
        *,
        hypothesis_template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """See ``Engine.zero_shot``."""
        call = ZeroShot.of(self._started.model_info, labels, hypothesis_template, multi_label=multi_label)
        lone = isinstance(texts, str)
        if isinstance(texts, AsyncIterable):
            pairs: TextsOrPairs = call.pairs_async(texts)
        else:
            pairs = call.pairs([texts] if isinstance(texts, str) else texts)
        parts = self._stream(pairs, call.decode(), truncate, progress, pairs=call.inputs(lone=lone))
        found = [result async for result in parts]
        return found[0] if lone else found

    @overload
    async def tag(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self, texts: str, *, aggregation: Aggregation | None = None, truncate: bool = False, progress: bool = False
    ) -> list[Entity]: ...
    @overload
    async def tag(
        self, texts: Texts, *, aggregation: Aggregation | None = None, truncate: bool = False, progress: bool = False
    ) -> list[list[Entity]]: ...
    async def tag(
        self,
        texts: str | Texts,
        *,
        aggregation: Aggregation | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[Entity] | list[list[Entity]]:
        """See ``Engine.tag``."""
        decode = entities(self._started.model_info, aggregation, self._open_session.engine.tokenizer)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate)
        return [result async for result in self._stream(texts, decode, truncate, progress)]

    def tag_stream(
        self, texts: Texts, *, aggregation: Aggregation | None = None, truncate: bool = False, progress: bool = False
    ) -> AsyncIterator[list[Entity]]:
        """See ``Engine.tag_stream``."""
        return self._stream(
            texts,
            entities(self._started.model_info, aggregation, self._open_session.engine.tokenizer),
            truncate,
            progress,
        )

    @overload
    async def embed_sparse(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self,
        texts: str,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> SparseVector: ...
    @overload
    async def embed_sparse(
        self,
        texts: Texts,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[SparseVector]: ...
    async def embed_sparse(
        self,
        texts: str | Texts,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> SparseVector | list[SparseVector]:
        """See ``Engine.embed_sparse``."""
        decode = sparse_vectors(self._started.model_info)
        chosen = choose_route(self._started.model_info, route, prompt, prompt_name)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate, chosen)
        return [result async for result in self._stream(texts, decode, truncate, progress, chosen)]

    def embed_sparse_stream(
        self,
        texts: Texts,
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[SparseVector]:
        """See ``Engine.embed_sparse_stream``."""
        chosen = choose_route(self._started.model_info, route, prompt, prompt_name)
        return self._stream(texts, sparse_vectors(self._started.model_info), truncate, progress, chosen)

    @overload
    async def embed_tokens(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self,
        texts: str,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors: ...
    @overload
    async def embed_tokens(
        self,
        texts: Texts,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[Vectors]: ...
    async def embed_tokens(
        self,
        texts: str | Texts,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors | list[Vectors]:
        """See ``Engine.embed_tokens``."""
        decode = token_vectors(self._started.model_info)
        chosen = choose_prompt(self._started.model_info, prompt, prompt_name)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate, chosen)
        return [result async for result in self._stream(texts, decode, truncate, progress, chosen)]

    def embed_tokens_stream(
        self,
        texts: Texts,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[Vectors]:
        """See ``Engine.embed_tokens_stream``."""
        chosen = choose_prompt(self._started.model_info, prompt, prompt_name)
        return self._stream(texts, token_vectors(self._started.model_info), truncate, progress, chosen)

    @overload
    async def fill_mask(  # type: ignore[overload-overlap]  # a str is an Texts, too
        self, texts: str, *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> list[list[FilledMask]]: ...
    @overload
    async def fill_mask(
        self, texts: Texts, *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> list[list[list[FilledMask]]]: ...
    async def fill_mask(
        self,
        texts: str | Texts,
        *,
        top_k: int = DEFAULT_TOP_K,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[FilledMask]] | list[list[list[FilledMask]]]:
        """See ``Engine.fill_mask``."""
        decode = filled_masks(self._started.model_info, top_k, self._open_session.engine.tokenizer)
        if isinstance(texts, str):
            return await self._one(texts, decode, truncate)
        return [result async for result in self._stream(texts, decode, truncate, progress)]

    def fill_mask_stream(
        self, texts: Texts, *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> AsyncIterator[list[list[FilledMask]]]:
        """See ``Engine.fill_mask_stream``."""
        decode = filled_masks(self._started.model_info, top_k, self._open_session.engine.tokenizer)
        return self._stream(texts, decode, truncate, progress)

    @overload
    async def answer(
        self,
        questions: tuple[str, str],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[Answer]: ...
    @overload
    async def answer(
        self,
        questions: Iterable[tuple[str, str]] | AsyncIterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[list[Answer]]: ...
    async def answer(
        self,
        questions: tuple[str, str] | Iterable[tuple[str, str]] | AsyncIterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """See ``Engine.answer``."""
        lone = isinstance(questions, tuple) and all(isinstance(part, str) for part in questions)
        pairs = [questions] if lone else questions
        stream = self.answer_stream(
            pairs,  # type: ignore[arg-type]
            top_k=top_k,
            max_answer_len=max_answer_len,
            handle_impossible_answer=handle_impossible_answer,
            progress=progress,
        )
        found = [result async for result in stream]
        return found[0] if lone else found

    def answer_stream(
        self,
        questions: Iterable[tuple[str, str]] | AsyncIterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[list[Answer]]:
        """See ``Engine.answer_stream``."""
        decode = answers(
            self._started.model_info, top_k=top_k, max_tokens=max_answer_len, impossible=handle_impossible_answer
        )
        return self._stream(questions, decode, False, progress, pairs=ANSWER_INPUTS)

    async def predict(self, items: Iterable[Any] | AsyncIterable[Any], *, progress: bool = False) -> list[Any]:
        """See ``Engine.predict``."""
        return [result async for result in self.predict_stream(items, progress=progress)]

    async def predict_stream(
        self, items: Iterable[Any] | AsyncIterable[Any], *, progress: bool = False
    ) -> AsyncIterator[Any]:
        """See ``Engine.predict_stream``."""
        decode = custom_results(self._started.model_info)
        async with aclosing(self._computed(items, False, progress, json=True)) as parts:
            async for computed in parts:
                for result in await self._decoded(computed, decode):
                    yield result

    # ------------------------------------------------------------------- inside

    @property
    def _started(self) -> EngineSetup:
        if self._setup is None:
            raise UsageError("the engine is not started; use `async with AsyncEngine(...)`, or await start()")
        return self._setup

    @property
    def _open_session(self) -> Session:
        if self._session is None:
            raise UsageError("the engine is not started; use `async with AsyncEngine(...)`, or await start()")
        return self._session

    async def _one(self, text: str, decode: Decode[Result], truncate: bool, prompt: Prompt | None = None) -> Result:
        chunk = Chunker(1, truncate=truncate, lone=True, prompt=prompt).add(text)
        assert chunk is not None, "one text is a chunk of one"
        (result,) = await self._decoded(await self._open_session.compute(chunk), decode)
        return result

    async def _decoded(self, computed: Computed, decode: Decode[Result]) -> Iterable[Result]:
        """The results of a chunk; in a thread if they may take so long that the caller's loop would wait."""
        if computed.results.size > INLINE_VALUES and self._started.model_info.task in SLOW_TO_DECODE:
            return await asyncio.to_thread(lambda: list(decode(computed)))
        return decode(computed)

    async def _stream(
        self,
        texts: TextsOrPairs,
        decode: Decode[Result],
        truncate: bool,
        progress: bool,
        prompt: Prompt | None = None,
        pairs: PairInputs | None = None,
    ) -> AsyncIterator[Result]:
        async with aclosing(self._computed(texts, truncate, progress, prompt, pairs)) as parts:
            async for computed in parts:
                for result in await self._decoded(computed, decode):
                    yield result

    async def _computed(
        self,
        texts: TextsOrPairs,
        truncate: bool,
        progress: bool,
        prompt: Prompt | None = None,
        pairs: PairInputs | None = None,
        json: bool = False,
    ) -> AsyncGenerator[Computed, None]:
        session = self._open_session
        chunker = Chunker(session.chunk_items, truncate=truncate, prompt=prompt, pairs=pairs, json=json)
        limit = chunk_limit(len(self.plan.instances))
        with progress_bar(texts, shown=progress) as advance:
            async with aclosing(in_order_async(texts, chunker, limit, session.compute)) as parts:
                async for computed in parts:
                    advance(len(computed.chunk.texts))
                    yield computed
