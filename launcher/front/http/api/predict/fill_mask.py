"""``POST /predict`` for masked language models: the most probable tokens for each mask token of each input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from launcher.core.protocol.task_settings import MAX_TOP_K
from launcher.core.scheduling.events import Priority
from launcher.errors import RequestError
from launcher.front.http.api.predict.item_rows import ItemRowsHandler
from launcher.front.http.api.predict.task_route import TaskRoute, encode_json
from launcher.front.http.disconnect import Client
from launcher.front.http.inference_route import InferenceContext
from launcher.front.http.inputs import Inputs, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.input_names import InputNames
from launcher.front.request_results import Vectors
from launcher.front.tasks.filled_masks import DEFAULT_TOP_K, FilledMask, MaskFiller
from launcher.front.tokenizer import Tokenized

# Each filled text is decoded and returned as a whole.
MAX_FILLED = 5000


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


class FillMaskHandler(ItemRowsHandler[FillMaskRequest]):
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

    async def _tokenize(
        self, body: FillMaskRequest, client: Client, priority: Priority, deadline: float | None
    ) -> Tokenized:
        tokenized = await super()._tokenize(body, client, priority, deadline)
        names = InputNames("inputs", lone=len(tokenized.items) == 1)
        masks = sum(self._filler.count(ids, names.of(index)) for index, ids in enumerate(tokenized.items))
        if masks * body.top_k > MAX_FILLED:
            raise RequestError(
                f"{masks} mask tokens with 'top_k' {body.top_k} make {masks * body.top_k} texts; the limit is "
                f"{MAX_FILLED} per request; send several requests, or a smaller 'top_k'",
                status=413,
                code="too_many_results",
                param="inputs",
            )
        return tokenized

    def encode_item(self, body: FillMaskRequest, rows: Vectors, index: int, tokenized: Tokenized) -> bytes:
        """See the base class."""
        return encode_json(self._filler.fill(tokenized.items[index], rows, body.top_k))


FILL_MASK = TaskRoute(
    handler=FillMaskHandler,
    request=FillMaskRequest,
    response=FillMaskResponse,
    example={"inputs": ["Paris is the [MASK] of France."]},
    returns="The most probable tokens for each mask token of each input, in order.",
)
