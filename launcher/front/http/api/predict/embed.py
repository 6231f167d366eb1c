"""``POST /predict`` for embedders: one vector per input."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from launcher.core.tasks import routes
from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute
from launcher.front.http.inference_route import routed_prompt
from launcher.front.http.inputs import Inputs, Prompt, PromptName, Route, Truncate
from launcher.front.http.json_results import Usage, vector_json
from launcher.front.request_results import Vectors


class EmbedRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model is an embedder."""

    inputs: Inputs
    truncate: Truncate = False
    prompt_name: PromptName = None
    prompt: Prompt = None
    route: Route = None


class EmbedResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model is an embedder: one vector per input, in order."""

    model: str
    task: Literal["embed"]
    predictions: list[list[float]]
    usage: Usage


class EmbedHandler(TaskHandler[EmbedRequest]):
    """Embeds the inputs."""

    def prompt(self, body: EmbedRequest) -> routes.Prompt | None:
        """See the base class."""
        return routed_prompt(self._model_info, body.route, body.prompt, body.prompt_name)

    def encode_results(self, body: EmbedRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        return [vector_json(row) for row in results]


EMBED = TaskRoute(
    handler=EmbedHandler,
    request=EmbedRequest,
    response=EmbedResponse,
    example={"inputs": ["What is a core?"]},
    returns="One vector per input, in order.",
)
