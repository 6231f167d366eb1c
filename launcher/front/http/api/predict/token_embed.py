"""``POST /predict`` for token vectors: one vector for each token of each input."""

from __future__ import annotations

from typing import Literal

import orjson
from msgspec import Struct

from launcher.front.http.api.predict.item_rows import ItemRowsHandler
from launcher.front.http.api.predict.task_route import TaskRoute
from launcher.front.http.inference_route import InferenceContext, chosen_prompt
from launcher.front.http.inputs import Inputs, Prompt, PromptName, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.request_results import Vectors


class TokenEmbedRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model makes token vectors."""

    inputs: Inputs
    truncate: Truncate = False
    prompt_name: PromptName = None
    prompt: Prompt = None


class TokenEmbedResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model makes token vectors: for each input, in order, one vector per
    token, including special tokens; without the first token for the head of BGE-M3."""

    model: str
    task: Literal["token-embed"]
    predictions: list[list[list[float]]]
    usage: Usage


class TokenEmbedHandler(ItemRowsHandler[TokenEmbedRequest]):
    """Embeds the tokens of the inputs."""

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        assert self._model_info.token_vectors is not None, "set for this task"
        self.first_row = int(self._model_info.token_vectors.skip_first)

    def prompt(self, body: TokenEmbedRequest) -> str | None:
        """See the base class."""
        return chosen_prompt(self._model_info, body.prompt, body.prompt_name)

    def encode_rows(self, rows: Vectors) -> bytes:
        """See the base class."""
        return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)


TOKEN_EMBED = TaskRoute(
    handler=TokenEmbedHandler,
    request=TokenEmbedRequest,
    response=TokenEmbedResponse,
    example={"inputs": ["What is a core?"]},
    returns="One vector for each token of each input, in order.",
)
