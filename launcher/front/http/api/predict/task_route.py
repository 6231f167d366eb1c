"""What the routes of all tasks have in common: the description of a route, and the handler to subclass.

Separate so that a task is one module beside this one. Nothing about a single task belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from launcher.front.http.body_decoder import Body
from launcher.front.http.inference_route import InferenceContext, InferenceHandler
from launcher.front.http.json_results import usage
from launcher.front.tokenizer import Tokenized

encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRoute:
    """``POST /predict`` for one task. ``request`` and ``response`` are the types of the bodies, ``example`` is a body,
    and ``returns`` says in a sentence what the response has."""

    handler: type[InferenceHandler[Any]]
    request: type[msgspec.Struct]
    response: type[msgspec.Struct]
    example: Mapping[str, Any]
    returns: str


class TaskHandler(InferenceHandler[Body]):
    """Answers with the model, the task, one prediction per input, and the token counts.

    Subclasses take their inputs from ``body.inputs`` and ``body.truncate``, or override ``inputs``.
    """

    inputs_field = "inputs"

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        names = encode_json({"model": self._model_info.name, "task": self._model_info.task})
        self._before_predictions = names[:-1] + b',"predictions":['

    def inputs(self, body: Any) -> tuple[Any, bool]:
        """See the base class."""
        return body.inputs, body.truncate

    def envelope(self, body: Any, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """See the base class."""
        return self._before_predictions, b'],"usage":%b}' % encode_json(usage(tokenized))
