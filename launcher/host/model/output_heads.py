"""Reads what single tasks, such as ``sparse-embed`` and ``fill-mask``, need of a model folder.

Separate from ``folder`` because each is a small set of files with rules of its own. The references are
``SparseEncoder`` of sentence-transformers 6, FlagEmbedding (for the heads of BGE-M3) and the fill-mask pipeline of
transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.protocol.task_settings import AnswerTokens, MaskTokens, SparsePooling, TokenVectors
from launcher.host.model.json_files import ModelErrors
from launcher.host.model.sentence_files import SentenceFiles
from launcher.host.model.sentence_modules import check_token_widths
from launcher.host.model.special_tokens import cleans_up_spaces, special_token_id
from launcher.options.choices import Task

# The heads of BGE-M3: linear layers, each in a file beside the weights of its encoder.
SPARSE_HEAD, COLBERT_HEAD = "sparse_linear.pt", "colbert_linear.pt"
# The tokens that FlagEmbedding gives no weight.
UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model: its config, the settings of sentence-transformers, and the tokenizer.json to use.

    ``folders`` are those with tokenizer files, the most important first.
    """

    architecture: str
    hidden_size: int
    sentence: SentenceFiles
    tokenizer_file: Path
    folders: Sequence[Path]


def task_settings(task: Task, files: ModelFiles, refuse: ModelErrors) -> Mapping[str, Any]:
    """The fields of ``ModelInfo`` that ``task`` alone needs. Raises ``UsageError`` if the model lacks them."""
    if task == "sparse-embed":
        return {"sparse": _sparse(files, refuse), **_prompts(files)}
    if task == "token-embed":
        return {**_token_vectors(files, refuse), **_prompts(files)}
    if task == "fill-mask":
        return {"masks": _mask_tokens(files, refuse)}
    if task == "question-answering":
        return {"answers": AnswerTokens(special_token_id("cls_token", files.tokenizer_file, files.folders, refuse))}
    return {}


def _prompts(files: ModelFiles) -> Mapping[str, Any]:
    settings = files.sentence.settings
    return {"prompts": dict(settings.prompts), "default_prompt": settings.default_prompt}


def _sparse(files: ModelFiles, refuse: ModelErrors) -> SparsePooling:
    if files.sentence.sparse is not None:
        return files.sentence.sparse
    if files.architecture.endswith("ForMaskedLM"):
        return SparsePooling()  # the default of SparseEncoder for such a model
    if not (files.sentence.folder / SPARSE_HEAD).is_file():
        raise refuse(
            f"--task sparse-embed needs a SPLADE model (ForMaskedLM, with SpladePooling in modules.json or no "
            f"modules.json), or {SPARSE_HEAD} as BGE-M3 has it, but this is a {files.architecture} without that file"
        )
    found = [special_token_id(name, files.tokenizer_file, files.folders, refuse) for name in UNWEIGHTED]
    excluded = sorted({token for token in found if token is not None})
    return SparsePooling(source="head", head=SPARSE_HEAD, excluded_ids=tuple(excluded))


def _token_vectors(files: ModelFiles, refuse: ModelErrors) -> Mapping[str, Any]:
    if (files.sentence.folder / COLBERT_HEAD).is_file():
        return {"token_vectors": TokenVectors(files.hidden_size, COLBERT_HEAD, skip_first=True)}
    chain = files.sentence.chain
    if chain is None:
        return {"token_vectors": TokenVectors(files.hidden_size)}
    check_token_widths(chain, files.hidden_size, refuse)
    return {"token_vectors": TokenVectors(files.hidden_size), "token_modules": tuple(chain.token_modules)}


def _mask_tokens(files: ModelFiles, refuse: ModelErrors) -> MaskTokens:
    mask_id = special_token_id("mask_token", files.tokenizer_file, files.folders, refuse)
    if mask_id is None:
        raise refuse("--task fill-mask needs a tokenizer with a mask token, and this one has none")
    pad_id = special_token_id("pad_token", files.tokenizer_file, files.folders, refuse)
    return MaskTokens(mask_id, pad_id, cleans_up_spaces(files.tokenizer_file, files.folders, refuse))
