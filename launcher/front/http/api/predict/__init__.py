"""Our own API for every task: ``POST /predict``. The task of the served model decides what it takes and returns.

To add a task: write a module here that defines its ``TaskRoute``, and add it to ``TASK_ROUTES``.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.front.http.api.predict.classify import CLASSIFY
from launcher.front.http.api.predict.custom import CUSTOM
from launcher.front.http.api.predict.embed import EMBED
from launcher.front.http.api.predict.fill_mask import FILL_MASK
from launcher.front.http.api.predict.question_answering import QUESTION_ANSWERING
from launcher.front.http.api.predict.rerank import RERANK
from launcher.front.http.api.predict.sparse_embed import SPARSE_EMBED
from launcher.front.http.api.predict.tag import TAG
from launcher.front.http.api.predict.task_route import TaskRoute
from launcher.front.http.api.predict.token_embed import TOKEN_EMBED
from launcher.front.http.api.predict.zero_shot import ZERO_SHOT
from launcher.front.http.inference_route import InferenceRoute
from launcher.front.http.route import ApiFamily, ResponseSpec
from launcher.front.http.services import Services
from launcher.options.choices import Task

TASK_ROUTES: Mapping[Task, TaskRoute] = {
    "embed": EMBED,
    "classify": CLASSIFY,
    "tag": TAG,
    "rerank": RERANK,
    "zero-shot": ZERO_SHOT,
    "sparse-embed": SPARSE_EMBED,
    "token-embed": TOKEN_EMBED,
    "fill-mask": FILL_MASK,
    "question-answering": QUESTION_ANSWERING,
    "custom": CUSTOM,
}


def family(services: Services) -> ApiFamily:
    """The route for the task of the served model."""
    task = TASK_ROUTES[services.model_info.task]
    route = InferenceRoute(
        path="/predict",
        summary="The result of the model's task",
        handler=task.handler,
        request=task.request,
        example=task.example,
        responses={200: ResponseSpec(task.returns, task.response)},
    )
    return ApiFamily("predict", (route,))
