"""``POST /predict`` for a custom task: JSON items in, JSON results out."""

from __future__ import annotations

import asyncio
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from launcher.errors import RequestError
from launcher.front.custom_items import CustomItems
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute
from launcher.front.http.inference_route import RESULTS_PER_TURN, InferenceContext, Tokenize
from launcher.front.http.inputs import too_many_inputs
from launcher.front.http.json_results import Usage
from launcher.front.tokenizer import Tokenized


class CustomRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if a custom class is served."""

    inputs: Annotated[list[msgspec.Raw], Meta(description="The items, as the class takes them.")]


class CustomResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if a custom class is served: one result per item, in order.

    The token counts in ``usage`` are the sizes that the class gave the items.
    """

    model: str
    task: Literal["custom"]
    predictions: list[Any]
    usage: Usage


class CustomHandler(TaskHandler[CustomRequest]):
    """Runs the class on the items, and limits the size of the results."""

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        self._max_rows = self._options.result_bytes  # a row is a byte

    def inputs(self, body: CustomRequest) -> tuple[Any, bool]:
        """See the base class; nothing is truncated."""
        return body.inputs, False

    def prepare(self, body: CustomRequest) -> tuple[int, Tokenize]:
        """See the base class."""
        reader, count = self._tokenizer, len(body.inputs)
        assert isinstance(reader, CustomItems), "the reader of inputs belongs to the task"
        if not count:
            raise RequestError("'inputs' is an empty list; send at least one item", code="empty_input", param="inputs")
        if count > self._options.request_items:
            raise too_many_inputs("inputs", str(count), self._options.request_items)
        return count, lambda wait: reader.items([bytes(item) for item in body.inputs], wait=wait)

    async def encode_outcome(self, body: CustomRequest, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class: the workers' JSON, as it is."""
        if (size := sum(outcome.rows)) > self._options.result_bytes:
            raise RequestError(
                f"the results have {size} bytes together, the limit is {self._options.result_bytes} per request "
                "(--max-result-bytes); send several requests, or have the class return less",
                status=413,
                code="too_many_results",
                param="inputs",
            )
        everything = outcome.results.tobytes()
        parts: list[bytes] = []
        for index, (start, end) in enumerate(pairwise(accumulate(outcome.rows, initial=0))):
            if index and index % RESULTS_PER_TURN == 0:
                await asyncio.sleep(0)
            parts.append(everything[start:end])
        return parts


CUSTOM = TaskRoute(
    handler=CustomHandler,
    request=CustomRequest,
    response=CustomResponse,
    example={"inputs": ["an item"]},
    returns="The result of each item, in order.",
)
