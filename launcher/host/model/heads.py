"""Decides the task of a model from the head in its config, and how the logits of that head become scores.

Separate from ``folder`` because these are rules about meaning, not about files. The references are the pipelines of
transformers 5 and ``CrossEncoder`` of sentence-transformers 6. No file is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.core.protocol.model_info import Scores
from launcher.host.model.json_files import Json, ModelErrors
from launcher.host.model.sentence_files import SentenceFiles
from launcher.host.model.sentence_modules import ACTIVATIONS_HINT, activation_of
from launcher.host.model.sentence_settings import SETTINGS
from launcher.options import ModelOptions
from launcher.options.choices import Task
from launcher.options.option import ClassPath

HEADS: Mapping[Task, str] = {
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "fill-mask": "ForMaskedLM",
}
HEAD_NAMES: Mapping[Task, str] = {
    "classify": "classification",
    "tag": "token classification",
    "fill-mask": "masked language modelling",
}
# Tasks that ignore the head, or have a head of their own, which is checked later.
ANY_HEAD: frozenset[Task] = frozenset({"embed", "sparse-embed", "token-embed"})
# Tasks whose results have labels.
LABEL_TASKS: frozenset[Task] = frozenset({"classify", "tag"})
OTHER_HEAD = re.compile(r"For[A-Z]\w*|With\w*Head\w*")

# The keys of config.json with which versions 4 and later, and earlier ones, mark a cross-encoder.
CROSS_ENCODER, OLD_CROSS_ENCODER = "sentence_transformers", "sbert_ce_default_activation_function"

# The activations of a cross-encoder that are scores of a classifier under another name. A Softmax without a dimension
# works on the labels.
SOFTMAX = ("torch.nn.Softmax", "torch.nn.modules.activation.Softmax")
SCORES: Mapping[str, Scores] = {"Identity": "raw", "Sigmoid": "sigmoid"}


def task_of(
    architecture: str, config: Json, sentence: SentenceFiles, options: ModelOptions, refuse: ModelErrors
) -> Task:
    """The task of the model: ``--task``, or the one of its head. Raises ``UsageError`` if the head does not fit, or
    has no task here: another task is never chosen silently."""
    head: Task | None = next((task for task, name in HEADS.items() if architecture.endswith(name)), None)
    if options.task != "auto":
        assert not isinstance(options.task, ClassPath), "a class of the user's own is not read from a folder"
        if options.task not in ANY_HEAD and options.task != head:
            name = HEAD_NAMES[options.task]
            raise refuse(f"--task {options.task} needs a model with a {name} head, but this is a {architecture}")
        if sentence.sparse is not None and options.task != "sparse-embed":
            raise refuse(f"--task {options.task}: this is a sparse encoder; it must be --task sparse-embed")
        return options.task
    if sentence.sparse is not None:
        return "sparse-embed"
    if sentence.kind == "SentenceTransformer":
        return "embed"  # its library ignores the head
    if head == "classify":
        _refuse_cross_encoder(config, sentence, refuse)
    if head is None and OTHER_HEAD.search(architecture):
        raise refuse(
            f"config.json names the architecture {architecture}, whose head is not supported; --task embed ignores the "
            "head and serves embeddings (mean pooling)"
        )
    return head or "embed"


def _refuse_cross_encoder(config: Json, sentence: SentenceFiles, refuse: ModelErrors) -> None:
    sign = None
    if sentence.kind == "CrossEncoder":
        sign = f"{SETTINGS} sets model_type to 'CrossEncoder'"
    elif marked := next((key for key in (CROSS_ENCODER, OLD_CROSS_ENCODER) if config.get(key) is not None), None):
        sign = f"config.json sets {marked} to {config[marked]!r}"
    elif len(labels_of(config)) == 1:
        sign = f"config.json names one label, {labels_of(config)[0]!r}"
    if sign is not None:
        raise refuse(
            f"{sign}, as cross-encoders do, and scoring pairs of texts is not supported; if the model scores single "
            "texts, set --task classify"
        )


def labels_of(config: Json) -> tuple[str, ...]:
    """The names of the labels, in the order of the logits."""
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    count = config.get("num_labels", 2)  # transformers' own default
    return tuple(f"LABEL_{index}" for index in range(int(count)))


def scores_of(task: Task, config: Json, sentence: SentenceFiles, refuse: ModelErrors) -> Scores:
    """How logits become scores: the rule of ``CrossEncoder`` for its models, else that of the text-classification
    pipeline. Raises ``UsageError`` for an activation that is not supported."""
    if task != "classify":
        return "softmax"
    one_label = len(labels_of(config)) == 1
    marked = config.get(CROSS_ENCODER)
    if sentence.activation is not None:
        return _activation(sentence.activation, f"{SETTINGS} sets activation_fn", refuse)
    if isinstance(marked, dict) and marked.get("activation_fn") is not None:
        return _activation(marked["activation_fn"], f"config.json sets {CROSS_ENCODER}.activation_fn", refuse)
    if config.get(OLD_CROSS_ENCODER) is not None and not _states_activation(marked):
        return _activation(config[OLD_CROSS_ENCODER], f"config.json sets {OLD_CROSS_ENCODER}", refuse)
    if sentence.kind == "CrossEncoder" or _states_activation(marked):
        return "sigmoid" if one_label else "raw"
    problem = config.get("problem_type")
    if problem == "regression":
        return "raw"
    return "sigmoid" if problem == "multi_label_classification" or one_label else "softmax"


def _states_activation(marked: Any) -> bool:
    return isinstance(marked, dict) and "activation_fn" in marked


def _activation(name: Any, where: str, refuse: ModelErrors) -> Scores:
    if name in SOFTMAX:
        return "softmax"
    activation = activation_of(name)
    if activation is None:
        raise refuse(f"{where} to {name!r}, which is not supported; {ACTIVATIONS_HINT}, or Softmax")
    return SCORES.get(activation, activation)
