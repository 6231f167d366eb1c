"""``Engine``: the Python API for programs without an event loop, and for notebooks."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from launcher.api.options import DEFAULT_MODEL
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
from launcher.api.setup import NO_COPY, prepare_engine
from launcher.core.planning.plan import Plan
from launcher.core.tasks.entities import Aggregation
from launcher.core.tasks.prompts import choose_prompt
from launcher.core.tasks.routes import Prompt, choose_route
from launcher.engine.session import Chunk, Computed, PairInputs
from launcher.engine.streaming import Chunker, chunk_limit, in_order
from launcher.engine.thread import SessionThread
from launcher.front.tasks.answers import DEFAULT_ANSWER_TOKENS, Answer
from launcher.front.tasks.answers import DEFAULT_TOP_K as ANSWERS
from launcher.front.tasks.filled_masks import DEFAULT_TOP_K, FilledMask
from launcher.front.tasks.label_scores import LabelScore
from launcher.front.tasks.sparse_vectors import SparseVector
from launcher.front.tasks.zero_shot import DEFAULT_TEMPLATE
from launcher.front.tokenizer import Text

if TYPE_CHECKING:
    import concurrent.futures

    from typing_extensions import Self, Unpack

    from launcher.api.keywords import EngineKeywords

Result = TypeVar("Result")


class Engine:
    """Instances of a model, bound to their cores, for this process.

    ``with Engine("demo", instances=2) as engine: vectors = engine.embed(texts)``. Keyword arguments are the options of
    ``launch serve``, with underscores. The instances are ready when the constructor returns. They are stopped by
    ``close``, at the end of the ``with`` block, and when the process ends for any reason.

    Methods block and may be called from several threads. They raise ``UsageError`` for an invalid call,
    ``RequestError`` for a text that cannot be used, and ``InstanceError`` when no instance is left.
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, **options: Unpack[EngineKeywords]) -> None:
        """Plan, start the instances and wait until they are ready. Raises any ``LauncherError``."""
        self._setup = prepare_engine(model, options)
        self._thread = SessionThread(self._setup.session)
        # For the exit of the interpreter, and for an engine that is dropped without being closed.
        self._finalizer = weakref.finalize(self, self._thread.kill)

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As ``close``."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """An engine cannot be copied to another process."""
        raise TypeError(NO_COPY)

    def close(self) -> None:
        """Finish the work of other threads, stop the instances, and return when all have exited.

        Closing again does nothing.
        """
        self._thread.close()
        self._finalizer.detach()

    @property
    def plan(self) -> Plan:
        """The cores of each instance, with the reasons."""
        return self._setup.prepared.plan

    def info(self) -> dict[str, Any]:
        """Where each instance runs, and the results of the verification: the body of ``GET /info``."""

        async def info() -> dict[str, Any]:
            return self._thread.session.engine.info()

        return self._thread.submit(info()).result()

    # ------------------------------------------------------------------- tasks

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors:
        """The vectors of ``texts``, in their order: float32 of shape (texts, width), or (width,) for a single ``str``.

        ``prompt`` is prepended to each text, or else the model's prompt with the name ``prompt_name``, or else its
        default prompt, if it has one. ``route`` chooses the modules of a model that has some for queries and others
        for documents, and its prompt of that name. A text with more tokens than the model accepts raises
        ``RequestError``; with ``truncate`` it is cut off at the end. ``progress`` shows a progress bar on standard
        error.
        """
        decode = vectors(self._setup.model_info)
        chosen = choose_route(self._setup.model_info, route, prompt, prompt_name)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate, chosen)
        parts = [computed.results for computed in self._computed(texts, truncate, progress, chosen)]
        return concatenate(parts, self._setup.model_info)

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Iterator[Vectors]:
        """The vector of each text, in order, as ``embed`` returns it, in constant memory: texts are read from the
        iterator at most a bounded number ahead of the results.
        """
        decode = vectors(self._setup.model_info)
        return self._stream(
            texts, decode, truncate, progress, choose_route(self._setup.model_info, route, prompt, prompt_name)
        )

    @overload
    def classify(self, texts: str, *, truncate: bool = False, progress: bool = False) -> list[LabelScore]: ...  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
    @overload
    def classify(
        self, texts: Iterable[Text], *, truncate: bool = False, progress: bool = False
    ) -> list[list[LabelScore]]: ...
    def classify(
        self, texts: str | Iterable[Text], *, truncate: bool = False, progress: bool = False
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """For each text, all labels with their scores, best first; for a single ``str``, those of this text.

        A tuple of two texts among ``texts`` is a pair, such as a premise and a hypothesis. With ``truncate``, the
        longer text of a pair is cut off first. Otherwise as ``embed``.
        """
        decode = label_scores(self._setup.model_info)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate)
        return list(self._stream(texts, decode, truncate, progress, pairs=CLASSIFY_INPUTS))

    def classify_stream(
        self, texts: Iterable[Text], *, truncate: bool = False, progress: bool = False
    ) -> Iterator[list[LabelScore]]:
        """The labels of each text or pair, in order, as ``classify`` returns them, in constant memory."""
        return self._stream(texts, label_scores(self._setup.model_info), truncate, progress, pairs=CLASSIFY_INPUTS)

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        raw_scores: bool = False,
        truncate: bool = False,
    ) -> list[RankedDocument]:
        """The ``documents`` by their relevance to ``query``, best first: the index, the score and, with
        ``return_documents``, the text of each of the ``top_k`` best, or of all.

        ``raw_scores`` gives the logits of the model instead of the scores of its activation function. A document that
        is too long together with the query raises ``RequestError``; with ``truncate``, the longer of both is cut off
        first.
        """
        ranking = Ranking.of(
            self._setup.model_info,
            query,
            documents,
            top_k=top_k,
            return_documents=return_documents,
            raw_scores=raw_scores,
        )
        parts = self._computed(ranking.pairs(), truncate, progress=False, pairs=RERANK_INPUTS)
        return ranking.result([computed.results for computed in parts])

    @overload
    def zero_shot(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
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
    def zero_shot(
        self,
        texts: Iterable[str],
        labels: str | Iterable[str],
        *,
        hypothesis_template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[LabelScore]]: ...
    def zero_shot(
        self,
        texts: str | Iterable[str],
        labels: str | Iterable[str],
        *,
        hypothesis_template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """For each text, all ``labels`` with their scores, best first; for a single ``str``, those of this text.

        Each label takes the place of ``{}`` in ``hypothesis_template``, and the model tells whether the text entails
        the result. The scores of a text sum to 1, or with ``multi_label`` each label has an independent score. With
        ``truncate``, texts are cut off, but not hypotheses. Otherwise as ``embed``.
        """
        call = ZeroShot.of(self._setup.model_info, labels, hypothesis_template, multi_label=multi_label)
        lone = isinstance(texts, str)
        pairs = call.pairs([texts] if isinstance(texts, str) else texts)
        found = list(self._stream(pairs, call.decode(), truncate, progress, pairs=call.inputs(lone=lone)))
        return found[0] if lone else found

    @overload
    def tag(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self, texts: str, *, aggregation: Aggregation | None = None, truncate: bool = False, progress: bool = False
    ) -> list[Entity]: ...
    @overload
    def tag(
        self,
        texts: Iterable[str],
        *,
        aggregation: Aggregation | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[Entity]]: ...
    def tag(
        self,
        texts: str | Iterable[str],
        *,
        aggregation: Aggregation | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[Entity] | list[list[Entity]]:
        """For each text, its entities with their positions; for a single ``str``, those of this text.

        ``aggregation`` is a strategy of transformers' pipeline (``simple``, ``first``, ``average``, ``max``), or
        ``bioes``, which joins tokens by the prefixes of BIOES, BILOU and BMES, or ``none``: each token with its best
        label, including tokens outside entities. By default it is ``bioes`` for labels with such prefixes, and
        ``simple`` otherwise. Otherwise as ``embed``.
        """
        decode = entities(self._setup.model_info, aggregation, self._thread.session.engine.tokenizer)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate)
        return list(self._stream(texts, decode, truncate, progress))

    def tag_stream(
        self,
        texts: Iterable[str],
        *,
        aggregation: Aggregation | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Iterator[list[Entity]]:
        """The entities of each text, in order, as ``tag`` returns them, in constant memory."""
        return self._stream(
            texts,
            entities(self._setup.model_info, aggregation, self._thread.session.engine.tokenizer),
            truncate,
            progress,
        )

    @overload
    def embed_sparse(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
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
    def embed_sparse(
        self,
        texts: Iterable[str],
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[SparseVector]: ...
    def embed_sparse(
        self,
        texts: str | Iterable[str],
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> SparseVector | list[SparseVector]:
        """For each text, its sparse vector: the ids of the tokens that have a weight, and the weights; for a single
        ``str``, that of this text. Otherwise as ``embed``.
        """
        decode = sparse_vectors(self._setup.model_info)
        chosen = choose_route(self._setup.model_info, route, prompt, prompt_name)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate, chosen)
        return list(self._stream(texts, decode, truncate, progress, chosen))

    def embed_sparse_stream(
        self,
        texts: Iterable[str],
        *,
        route: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Iterator[SparseVector]:
        """The sparse vector of each text, in order, as ``embed_sparse`` returns it, in constant memory."""
        chosen = choose_route(self._setup.model_info, route, prompt, prompt_name)
        return self._stream(texts, sparse_vectors(self._setup.model_info), truncate, progress, chosen)

    @overload
    def embed_tokens(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self,
        texts: str,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors: ...
    @overload
    def embed_tokens(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[Vectors]: ...
    def embed_tokens(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Vectors | list[Vectors]:
        """For each text, the vectors of its tokens, special tokens included: float32 of shape (tokens, width); for a
        single ``str``, those of this text. Otherwise as ``embed``.
        """
        decode = token_vectors(self._setup.model_info)
        chosen = choose_prompt(self._setup.model_info, prompt, prompt_name)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate, chosen)
        return list(self._stream(texts, decode, truncate, progress, chosen))

    def embed_tokens_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Iterator[Vectors]:
        """The vectors of the tokens of each text, in order, as ``embed_tokens`` returns them, in constant memory."""
        chosen = choose_prompt(self._setup.model_info, prompt, prompt_name)
        return self._stream(texts, token_vectors(self._setup.model_info), truncate, progress, chosen)

    @overload
    def fill_mask(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self, texts: str, *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> list[list[FilledMask]]: ...
    @overload
    def fill_mask(
        self, texts: Iterable[str], *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> list[list[list[FilledMask]]]: ...
    def fill_mask(
        self,
        texts: str | Iterable[str],
        *,
        top_k: int = DEFAULT_TOP_K,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[FilledMask]] | list[list[list[FilledMask]]]:
        """For each text and each of its mask tokens, the ``top_k`` (1 to 100) most probable tokens, best first; for a
        single ``str``, those of this text. A text without a mask token raises ``RequestError``. Otherwise as ``embed``.
        """
        decode = filled_masks(self._setup.model_info, top_k, self._thread.session.engine.tokenizer)
        if isinstance(texts, str):
            return self._one(texts, decode, truncate)
        return list(self._stream(texts, decode, truncate, progress))

    def fill_mask_stream(
        self, texts: Iterable[str], *, top_k: int = DEFAULT_TOP_K, truncate: bool = False, progress: bool = False
    ) -> Iterator[list[list[FilledMask]]]:
        """The tokens for the masks of each text, in order, as ``fill_mask`` returns them, in constant memory."""
        decode = filled_masks(self._setup.model_info, top_k, self._thread.session.engine.tokenizer)
        return self._stream(texts, decode, truncate, progress)

    @overload
    def answer(
        self,
        questions: tuple[str, str],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[Answer]: ...
    @overload
    def answer(
        self,
        questions: Iterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[list[Answer]]: ...
    def answer(
        self,
        questions: tuple[str, str] | Iterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """For each pair of a question and its context, the ``top_k`` best answers of at most ``max_answer_len`` tokens;
        for a single tuple, those of this question.

        A context of any length is read in windows that overlap. With ``handle_impossible_answer``, an empty answer is
        among the candidates; its score tells how likely the context has no answer.
        """
        lone = isinstance(questions, tuple) and all(isinstance(part, str) for part in questions)
        pairs = [questions] if lone else questions
        found = list(
            self.answer_stream(
                pairs,  # type: ignore[arg-type]
                top_k=top_k,
                max_answer_len=max_answer_len,
                handle_impossible_answer=handle_impossible_answer,
                progress=progress,
            )
        )
        return found[0] if lone else found

    def answer_stream(
        self,
        questions: Iterable[tuple[str, str]],
        *,
        top_k: int = ANSWERS,
        max_answer_len: int = DEFAULT_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        progress: bool = False,
    ) -> Iterator[list[Answer]]:
        """The answers to each question, in order, as ``answer`` returns them, in constant memory."""
        decode = answers(
            self._setup.model_info, top_k=top_k, max_tokens=max_answer_len, impossible=handle_impossible_answer
        )
        return self._stream(questions, decode, False, progress, pairs=ANSWER_INPUTS)

    def predict(self, items: Iterable[Any], *, progress: bool = False) -> list[Any]:
        """The results of ``items`` of a custom class (``task="module:Class"``), in their order. Items and results are
        JSON values. Raises ``RequestError`` for an item that the class refuses.
        """
        return list(self.predict_stream(items, progress=progress))

    def predict_stream(self, items: Iterable[Any], *, progress: bool = False) -> Iterator[Any]:
        """The result of each item, in order, as ``predict`` returns it, in constant memory."""
        decode = custom_results(self._setup.model_info)
        for computed in self._computed(items, False, progress, json=True):
            yield from decode(computed)

    # ------------------------------------------------------------------- inside

    def _submit(self, chunk: Chunk) -> concurrent.futures.Future[Computed]:
        return self._thread.submit(self._thread.session.compute(chunk))

    def _one(self, text: str, decode: Decode[Result], truncate: bool, prompt: Prompt | None = None) -> Result:
        chunker = Chunker(1, truncate=truncate, lone=True, prompt=prompt)
        (computed,) = in_order([text], chunker, 1, self._submit)
        (result,) = decode(computed)
        return result

    def _stream(
        self,
        texts: Iterable[Text],
        decode: Decode[Result],
        truncate: bool,
        progress: bool,
        prompt: Prompt | None = None,
        pairs: PairInputs | None = None,
    ) -> Iterator[Result]:
        for computed in self._computed(texts, truncate, progress, prompt, pairs):
            yield from decode(computed)

    def _computed(
        self,
        texts: Iterable[Text],
        truncate: bool,
        progress: bool,
        prompt: Prompt | None = None,
        pairs: PairInputs | None = None,
        json: bool = False,
    ) -> Iterator[Computed]:
        limit = chunk_limit(len(self.plan.instances))
        chunker = Chunker(self._thread.session.chunk_items, truncate=truncate, prompt=prompt, pairs=pairs, json=json)
        with progress_bar(texts, shown=progress) as advance:
            for computed in in_order(texts, chunker, limit, self._submit):
                advance(len(computed.chunk.texts))
                yield computed
