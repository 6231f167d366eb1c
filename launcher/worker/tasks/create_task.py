"""The table of tasks, and the protocol that each implements.

To add a task: write a module here with a class that implements ``Task``, and add it to ``TASKS`` and to
``options.choices.Task``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor

from launcher.core.protocol.model_info import ModelInfo
from launcher.options import choices
from launcher.worker.batches import PackedBatch, PaddedBatch
from launcher.worker.tasks.classify import Classify, Logits
from launcher.worker.tasks.embed import Embed
from launcher.worker.tasks.fill_mask import FillMask
from launcher.worker.tasks.hidden_states import VaryingRows
from launcher.worker.tasks.question_answering import QuestionAnswering
from launcher.worker.tasks.rerank import Rerank
from launcher.worker.tasks.sparse_embed import Splade, TokenWeights
from launcher.worker.tasks.tag import Tag
from launcher.worker.tasks.token_embed import TokenEmbed


class Task(Protocol):
    """Turns outputs of a model into results, in fp32, so that no hidden state leaves the worker."""

    auto_class: ClassVar[Any]
    """The class of transformers that loads a model for this task."""
    unused_modules: ClassVar[tuple[str, ...]]
    """Modules of the model whose outputs the task ignores; their weights may be missing."""
    encoder: Any
    """The module that computes hidden states: the model itself, or the part below its head."""

    def __init__(self, model: Any, model_info: ModelInfo) -> None: ...

    def from_padded(self, output: Any, batch: PaddedBatch) -> Tensor | VaryingRows:
        """The values of a ``BatchOutput``, from the output of the whole model for a padded batch; from that of the
        encoder for a subclass of ``FromHiddenStates``."""
        ...

    def from_packed(self, hidden: Tensor, batch: PackedBatch) -> Tensor | VaryingRows:
        """The values of a ``BatchOutput``, from the hidden states of a packed batch, tokens × hidden size."""
        ...


TASKS: dict[choices.Task, type[Task]] = {
    "embed": Embed,
    "classify": Classify,
    "tag": Tag,
    "rerank": Rerank,
    "zero-shot": Logits,
    "sparse-embed": Splade,
    "token-embed": TokenEmbed,
    "fill-mask": FillMask,
    "question-answering": QuestionAnswering,
}


def task_class(model_info: ModelInfo) -> type[Task]:
    """The class of the task that ``model_info`` names."""
    if model_info.sparse is not None and model_info.sparse.source == "head":
        return TokenWeights
    return TASKS[model_info.task]


def create_task(model: Any, model_info: ModelInfo) -> Task:
    """The task that ``model_info`` names, for this model."""
    return task_class(model_info)(model, model_info)
