"""``POST /predict`` for classifiers: the labels of each input."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from launcher.front.http.api.predict.task_route import TaskHandler, TaskRoute, encode_json
from launcher.front.http.inputs import PairInputs, Truncate
from launcher.front.http.json_results import Usage
from launcher.front.request_results import Vectors
from launcher.front.tasks.label_scores import LabelScore, ranked_labels


class ClassifyRequest(Struct, frozen=True):
    """Body of ``POST /predict`` if the served model is a classifier."""

    inputs: PairInputs
    truncate: Truncate = False


class ClassifyResponse(Struct, frozen=True):
    """Response of ``POST /predict`` if the served model is a classifier: one list per input, in order, of all labels
    with their scores, best first."""

    model: str
    task: Literal["classify"]
    predictions: list[list[LabelScore]]
    usage: Usage


class ClassifyHandler(TaskHandler[ClassifyRequest]):
    """Classifies the inputs."""

    def encode_results(self, body: ClassifyRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        return [encode_json(ranked_labels(row, self._model_info.labels)) for row in results]


CLASSIFY = TaskRoute(
    handler=ClassifyHandler,
    request=ClassifyRequest,
    response=ClassifyResponse,
    example={"inputs": ["What is a core?"]},
    returns="All labels of each input with their scores, best first.",
)
