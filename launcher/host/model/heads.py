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

CLASSIFIER, TAGGER = "ForSequenceClassification", "ForTokenClassification"
MASKED, ANSWERING = "ForMaskedLM", "ForQuestionAnswering"
HEADS: Mapping[Task, str] = {
    "classify": CLASSIFIER,
    "tag": TAGGER,
    "rerank": CLASSIFIER,
    "zero-shot": CLASSIFIER,
    "fill-mask": MASKED,
    "question-answering": ANSWERING,
}
HEAD_NAMES: Mapping[str, str] = {
    CLASSIFIER: "sequence classification",
    TAGGER: "token classification",
    MASKED: "masked language modelling",
    ANSWERING: "question answering",
}
# Tasks that ignore the head, or have a head of their own, which is checked later.
ANY_HEAD: frozenset[Task] = frozenset({"embed", "sparse-embed", "token-embed"})
# Tasks whose results have labels.
LABEL_TASKS: frozenset[Task] = frozenset({"classify", "tag", "rerank", "zero-shot"})
LISTED_LABELS, LISTED_CHARACTERS = 10, 200  # of a message
OTHER_HEAD = re.compile(r"For[A-Z]\w*|With\w*Head\w*")

# The keys of config.json in which versions 4 and later, and earlier ones, save the activation of a cross-encoder.
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
    if options.task != "auto":
        assert not isinstance(options.task, ClassPath), "a custom class is not read from a folder"
        _check_head(options.task, architecture, config, refuse)
        if sentence.sparse is not None and options.task != "sparse-embed":
            raise refuse(f"--task {options.task}: this is a sparse encoder; use --task sparse-embed")
        return options.task
    if sentence.sparse is not None:
        return "sparse-embed"
    if sentence.kind == "SentenceTransformer":
        return "embed"  # its library ignores the head
    head: Task | None = next((task for task, name in HEADS.items() if architecture.endswith(name)), None)
    if head is None and OTHER_HEAD.search(architecture):
        raise refuse(
            f"config.json names the architecture {architecture}, whose head is not supported; --task embed ignores the "
            "head and serves embeddings (mean pooling)"
        )
    if head == "classify" and len(labels_of(config, refuse)) == 1:
        return "rerank"
    return head or "embed"


def _check_head(task: Task, architecture: str, config: Json, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the model lacks what ``task`` needs."""
    if task in ANY_HEAD:
        return
    if not architecture.endswith(HEADS[task]):
        reason = f"--task {task} needs a model with a {HEAD_NAMES[HEADS[task]]} head, but this is a {architecture}"
        if task == "rerank" and architecture.endswith("ForCausalLM"):
            reason += "; rerankers that compare the logits of two tokens are not supported"
        raise refuse(reason)
    labels = labels_of(config, refuse)
    if task == "rerank" and len(labels) != 1:
        raise refuse(
            f"--task rerank needs a model with one label, but config.json names {len(labels)} "
            f"({_listed(labels)}); --task classify gives the score of each"
        )


def entailment_of(config: Json, refuse: ModelErrors) -> int:
    """The index of the label for entailment, as the zero-shot pipeline finds it. Raises ``UsageError`` if there is
    none."""
    labels = labels_of(config, refuse)
    indices = config.get("label2id")
    if not isinstance(indices, dict) or not indices:
        indices = {label: index for index, label in enumerate(labels)}
    for label, index in indices.items():
        if str(label).lower().startswith("entail"):
            if isinstance(index, int) and 0 <= index < len(labels):
                return index
            raise refuse(f"config.json sets label2id.{label} to {index!r}; it must be from 0 to {len(labels) - 1}")
    raise refuse(
        "--task zero-shot needs a model for natural language inference, with a label whose name starts with 'entail', "
        f"but config.json has the labels {_listed(tuple(map(str, indices)))} (label2id)"
    )


def _listed(labels: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, labels[:LISTED_LABELS]))
    return shown + (", …" if len(labels) > LISTED_LABELS else "")


def labels_of(config: Json, refuse: ModelErrors) -> tuple[str, ...]:
    """The names of the labels, in the order of the logits. Raises ``UsageError`` if they are not numbered from 0, or
    contradict ``num_labels``: transformers then fails, or names the logits in another way."""
    names, count = config.get("id2label"), config.get("num_labels")
    if names is None:
        count = 2 if count is None else count  # transformers' own default
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise refuse(f"config.json sets num_labels to {count!r}; it must be a positive integer")
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(names, dict) or not names or set(map(str, names)) != set(map(str, range(len(names)))):
        shown = repr(names) if len(repr(names)) <= LISTED_CHARACTERS else f"{repr(names)[:LISTED_CHARACTERS]} …"
        raise refuse(
            f"config.json sets id2label to {shown}; it must be an object with a name for each number from 0 on"
        )
    if count not in (None, len(names)):
        raise refuse(
            f"config.json sets num_labels to {count!r}, but id2label has {len(names)} labels; remove num_labels"
        )
    return tuple(str(names[key]) for key in sorted(names, key=int))


def scores_of(task: Task, config: Json, sentence: SentenceFiles, refuse: ModelErrors) -> Scores:
    """How logits become scores: the rule of ``CrossEncoder`` for its models and for rerankers, else that of the
    text-classification pipeline. Raises ``UsageError`` for an activation that is not supported."""
    if task not in ("classify", "rerank"):
        return "softmax"
    one_label = len(labels_of(config, refuse)) == 1
    marked = config.get(CROSS_ENCODER)
    if sentence.activation is not None:
        return _activation(sentence.activation, f"{SETTINGS} sets activation_fn", refuse)
    if isinstance(marked, dict) and marked.get("activation_fn") is not None:
        return _activation(marked["activation_fn"], f"config.json sets {CROSS_ENCODER}.activation_fn", refuse)
    if config.get(OLD_CROSS_ENCODER) is not None and not _states_activation(marked):
        return _activation(config[OLD_CROSS_ENCODER], f"config.json sets {OLD_CROSS_ENCODER}", refuse)
    if sentence.kind == "CrossEncoder" or _states_activation(marked):
        return "sigmoid" if one_label else "raw"
    if task == "rerank":
        return "sigmoid"
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
