"""``POST /predict``: the result of the model's own task, whatever it is."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from launcher.front.dispatcher import Vectors
from launcher.front.http.bodies import LabelScore, PredictRequest
from launcher.front.http.compute import ComputeRoute, Services
from launcher.front.http.exchange import Intake
from launcher.front.http.openai import usage, vector_json
from launcher.front.tokenizer import Tokenized

_encode = msgspec.json.Encoder().encode


class PredictRoute(ComputeRoute[PredictRequest]):
    """``POST /predict``."""

    path = "/predict"
    field = "inputs"
    body_type = PredictRequest

    def __init__(self, services: Services, intake: Intake) -> None:
        super().__init__(services, intake)
        self._before = (
            _encode({"model": self._model_info.name, "task": self._model_info.task})[:-1] + b',"predictions":['
        )

    def check(self, body: PredictRequest) -> None:
        """Nothing is left to check."""

    def inputs(self, body: PredictRequest) -> tuple[Any, bool]:
        """See the base class."""
        return body.inputs, body.truncate

    def entries(self, body: PredictRequest, results: Vectors, first: int) -> list[bytes]:
        """See the base class."""
        if self._model_info.task == "classify":
            return [_encode(ranked(row, self._model_info.labels)) for row in results]
        return [vector_json(row) for row in results]

    def envelope(self, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """See the base class."""
        return self._before, b'],"usage":%b}' % _encode(usage(tokenized))


def ranked(scores: Vectors, labels: tuple[str, ...]) -> list[LabelScore]:
    """All labels with their scores, best first; equal scores in the order of the labels."""
    order = np.argsort(-scores, kind="stable")
    # float32 to the shortest decimal that means it, so that 0.9 is not written as 0.8999999761581421
    return [LabelScore(labels[index], float(str(scores[index]))) for index in order.tolist()]
