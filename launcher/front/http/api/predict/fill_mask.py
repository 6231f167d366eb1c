"""``POST /predict`` for masked language models: the most probable tokens for each mask token of each input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from launcher.core.protocol.task_settings import MAX_TOP_K
from launcher.errors import RequestError
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute, encode_json
from launcher.front.http.inference_route import Caller, InferenceContext
from launcher.front.http.inputs import Inputs, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.input_names import InputNames
from launcher.front.request_results import split_rows
from launcher.front.tasks.filled_masks import DEFAULT_TOP_K, FilledMask, MaskFiller
from launcher.front.tokenizer import Tokenized

# Each filled text is decoded and returned as a whole.
MAX_FILLED = 5000
MAX_FILLED_TOKENS = 2_000_000


class FillMaskRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model fills masks."""

    inputs: Inputs
    truncate: Truncate = False
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K, description="Number of tokens to return for each mask token.")] = (
        DEFAULT_TOP_K
    )
    targets: Annotated[Any, Meta(description="Not supported: must be absent or null.")] = None


class FillMaskResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model fills masks: for each input, in order, and each of its mask
    tokens, in order, a list of the most probable tokens, best first."""

    model: str
    task: Literal["fill-mask"]
    predictions: list[list[list[FilledMask]]]
    usage: Usage


class FillMaskHandler(TaskHandler[FillMaskRequest]):
    """Fills the mask tokens of the inputs."""

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        self._filler = MaskFiller(self._tokenizer.vocabulary, self._model_info)

    def validate(self, body: FillMaskRequest) -> None:
        """See the base class."""
        if body.targets is not None:
            raise RequestError(
                "'targets' is not supported; omit it and choose among the tokens of a larger 'top_k'",
                code="unsupported",
                param="targets",
            )

    async def _tokenize(self, body: FillMaskRequest, caller: Caller) -> Tokenized:
        tokenized = await super()._tokenize(body, caller)
        names = InputNames("inputs", lone=len(tokenized.items) == 1)
        masks = [self._filler.count(ids, names, index) for index, ids in enumerate(tokenized.items)]
        texts = sum(masks) * body.top_k
        tokens = sum(count * len(ids) for count, ids in zip(masks, tokenized.items, strict=True)) * body.top_k
        if texts > MAX_FILLED or tokens > MAX_FILLED_TOKENS:
            raise RequestError(
                f"{sum(masks)} mask tokens with 'top_k' {body.top_k} make {texts} texts of {tokens} tokens together; "
                f"the limits are {MAX_FILLED} texts and {MAX_FILLED_TOKENS} tokens per request; send several requests, "
                "or a smaller 'top_k'",
                status=413,
                code="too_many_results",
                param="inputs",
            )
        return tokenized

    async def encode_outcome(self, body: FillMaskRequest, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class. In a thread, because decoding a long text takes a fraction of a millisecond."""
        return await self._tokenizer.in_thread(1, self._encoded, tokenized, outcome, body.top_k)

    def _encoded(self, tokenized: Tokenized, outcome: Outcome, top_k: int) -> list[bytes]:
        rows = split_rows(outcome.results, outcome.rows)
        fill = self._filler.fill
        return [encode_json(fill(ids, own, top_k)) for ids, own in zip(tokenized.items, rows, strict=True)]


FILL_MASK = TaskRoute(
    handler=FillMaskHandler,
    request=FillMaskRequest,
    response=FillMaskResponse,
    example={"inputs": ["Paris is the [MASK] of France."]},
    returns="The most probable tokens for each mask token of each input, in order.",
)
