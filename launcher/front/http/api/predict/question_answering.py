"""``POST /predict`` for question answering: the answers to each question in its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from launcher.errors import RequestError
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute, encode_json
from launcher.front.http.inference_route import Tokenize
from launcher.front.http.inputs import too_many_inputs
from launcher.front.http.json_results import Usage
from launcher.front.input_names import InputNames
from launcher.front.pairs import Pair
from launcher.front.request_results import Vectors, split_rows
from launcher.front.tasks.answers import (
    DEFAULT_ANSWER_TOKENS,
    DEFAULT_TOP_K,
    MAX_ANSWER_TOKENS,
    MAX_ANSWERS,
    Answer,
    AnswerRules,
    Window,
)
from launcher.front.tokenizer import Tokenized

QUESTION_NAMES = InputNames("inputs", halves=(".question", ".context"))


class Question(Struct, frozen=True):
    """A question, and the text to find its answer in."""

    question: str
    context: str


class QuestionsRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model answers questions."""

    inputs: Question | list[Question]
    top_k: Annotated[int, Meta(ge=1, le=MAX_ANSWERS, description="Maximum number of answers to return.")] = (
        DEFAULT_TOP_K
    )
    max_answer_len: Annotated[
        int, Meta(ge=1, le=MAX_ANSWER_TOKENS, description="Maximum number of tokens of an answer.")
    ] = DEFAULT_ANSWER_TOKENS
    handle_impossible_answer: Annotated[
        bool, Meta(description="Also consider an empty answer; its score tells how likely the context has no answer.")
    ] = False


class AnswersResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model answers questions: for each input, in order, its answers, best
    first."""

    model: str
    task: Literal["question-answering"]
    predictions: list[list[Answer]]
    usage: Usage


class QuestionsHandler(TaskHandler[QuestionsRequest]):
    """Answers questions."""

    def prepare(self, body: QuestionsRequest) -> tuple[int, Tokenize]:
        """See the base class."""
        questions = _questions(body.inputs)
        if len(questions) > self._options.request_items:
            raise too_many_inputs("inputs", str(len(questions)), self._options.request_items)
        pairs: list[Pair] = [(one.question, one.context) for one in questions]
        names = replace(QUESTION_NAMES, lone=not isinstance(body.inputs, list))
        return len(pairs), lambda wait: self._tokenizer.windows(
            pairs, limit=self._options.request_items, field=names, wait=wait
        )

    async def encode_outcome(self, body: QuestionsRequest, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        assert self._model_info.answers is not None, "set for this task"
        rules = AnswerRules(
            self._model_info.answers.cls_id, body.top_k, body.max_answer_len, body.handle_impossible_answer
        )
        questions = _questions(body.inputs)
        return await self._tokenizer.in_thread(1, _encoded, rules, questions, outcome.results, tokenized)


def _encoded(rules: AnswerRules, questions: Sequence[Question], results: Vectors, tokenized: Tokenized) -> list[bytes]:
    """The JSON of the answers to each question."""
    logits = split_rows(results, [len(item) for item in tokenized.items])
    windows = map(Window, tokenized.items, tokenized.spans, logits)
    return [
        encode_json(rules.answers(question.context, list(islice(windows, count))))
        for question, count in zip(questions, tokenized.windows, strict=True)
    ]


def _questions(inputs: Any) -> list[Question]:
    questions = inputs if isinstance(inputs, list) else [inputs]
    if not questions:
        raise RequestError("'inputs' is an empty list; send at least one question", code="empty_input", param="inputs")
    return questions


QUESTION_ANSWERING = TaskRoute(
    handler=QuestionsHandler,
    request=QuestionsRequest,
    response=AnswersResponse,
    example={"inputs": {"question": "What has memory?", "context": "A core executes instructions. A node has memory."}},
    returns="The answers to each question, best first.",
)
