"""``POST /predict`` for sparse embedders: the weighted tokens of each input."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from launcher.core.tasks import routes
from launcher.front.http.api.predict.item_rows import ItemRowsHandler
from launcher.front.http.api.predict.task_route import TaskRoute
from launcher.front.http.inference_route import routed_prompt
from launcher.front.http.inputs import Inputs, Prompt, PromptName, Route, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.request_results import Vectors
from launcher.front.tasks.sparse_vectors import TokenWeight, sparse_json


class SparseEmbedRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model is a sparse embedder."""

    inputs: Inputs
    truncate: Truncate = False
    prompt_name: PromptName = None
    prompt: Prompt = None
    route: Route = None


class SparseEmbedResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model is a sparse embedder: one list per input, in order, of the
    tokens of the vocabulary whose weight is not 0, by ascending id."""

    model: str
    task: Literal["sparse-embed"]
    predictions: list[list[TokenWeight]]
    usage: Usage


class SparseEmbedHandler(ItemRowsHandler[SparseEmbedRequest]):
    """Embeds the inputs."""

    # About 3 ms: each row becomes an object.
    values_per_turn = 5_000

    def prompt(self, body: SparseEmbedRequest) -> routes.Prompt | None:
        """See the base class."""
        return routed_prompt(self._model_info, body.route, body.prompt, body.prompt_name)

    def encode_rows(self, rows: Vectors) -> bytes:
        """See the base class."""
        return sparse_json(rows)


SPARSE_EMBED = TaskRoute(
    handler=SparseEmbedHandler,
    request=SparseEmbedRequest,
    response=SparseEmbedResponse,
    example={"inputs": ["What is a core?"]},
    returns="The weighted tokens of each input, in order.",
)
