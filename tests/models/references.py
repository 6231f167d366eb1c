"""The results of the libraries: one function per task, each for one text at a time, so that nothing is padded.

Each takes the folder of a model and the inputs, and returns one array per input: float32, rows × width, as the worker
sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Results = list[NDArray[np.float32]]


def embed(folder: Path, texts: Sequence[str]) -> Results:
    """``SentenceTransformer.encode``."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return [model.encode([text], show_progress_bar=False) for text in texts]


def classify(folder: Path, texts: Sequence[str | tuple[str, str]]) -> Results:
    """The pipeline ``text-classification``, in the order of the labels. Texts can be pairs."""
    from transformers import pipeline

    run = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    order = [label for _, label in sorted(run.model.config.id2label.items())]
    found = [{entry["label"]: entry["score"] for entry in run([_named(text)], truncation=True)[0]} for text in texts]
    return [np.array([[scores[label] for label in order]], dtype=np.float32) for scores in found]


def tag(folder: Path, texts: Sequence[str]) -> Results:
    """The softmax of the logits of each token, as the pipeline ``token-classification`` computes it."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True).eval()
    results = []
    with torch.no_grad():
        for text in texts:
            encoded = tokenizer(text, return_tensors="pt", truncation=True)
            results.append(torch.softmax(model(**encoded).logits[0], dim=-1).numpy())
    return results


def sparse_embed(folder: Path, texts: Sequence[str]) -> Results:
    """``SparseEncoder.encode``: one value for each token of the vocabulary."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    return [model.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False).numpy() for text in texts]


def sparse_route(folder: Path, texts: Sequence[str], route: str | None, **settings: Any) -> Results:
    """``SparseEncoder.encode_query`` or ``encode_document``, as ``route`` says; ``encode`` for ``None``."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    encode = {"query": model.encode_query, "document": model.encode_document, None: model.encode}[route]
    settings |= {"convert_to_sparse_tensor": False, "show_progress_bar": False}
    found = [encode([text], **settings).numpy() for text in texts]
    # The fixed weights end with the vocabulary of the tokenizer, which the encoder's may exceed.
    size = model.encode_document(["a"], **settings).shape[1]
    return [np.pad(row, ((0, 0), (0, size - row.shape[1]))) for row in found]


def route(folder: Path, texts: Sequence[str], route: str | None, **settings: Any) -> Results:
    """``SentenceTransformer.encode_query`` or ``encode_document``, as ``route`` says; ``encode`` for ``None``."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encode = {"query": model.encode_query, "document": model.encode_document, None: model.encode}[route]
    return [encode([text], show_progress_bar=False, **settings) for text in texts]


def token_embed(folder: Path, texts: Sequence[str]) -> Results:
    """``SentenceTransformer.encode`` for token embeddings."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return [model.encode([text], output_value="token_embeddings")[0].numpy() for text in texts]


def fill_mask(folder: Path, texts: Sequence[str]) -> Results:
    """The pipeline ``fill-mask``: one value for each token of the vocabulary, the sum over the mask tokens of a text of
    its score if it is among the best 100."""
    from transformers import pipeline

    run = pipeline("fill-mask", model=str(folder), device="cpu", top_k=100)
    results = []
    for text in texts:
        found = run(text)
        scores = np.zeros((1, run.model.config.vocab_size), dtype=np.float32)
        for entry in found if isinstance(found[0], dict) else [entry for mask in found for entry in mask]:
            scores[0, entry["token"]] += entry["score"]
        results.append(scores)
    return results


def question_answering(folder: Path, pairs: Sequence[tuple[str, str]]) -> Results:
    """The logits of each token. transformers 5 has no pipeline for this task."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, local_files_only=True).eval()
    results = []
    with torch.no_grad():
        for pair in pairs:
            output = model(**tokenizer(*pair, return_tensors="pt", truncation=True))
            results.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1).numpy())
    return results


def _named(text: str | tuple[str, str]) -> str | dict[str, str]:
    """A text or a pair as pipelines take it."""
    return text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def rerank(folder: Path, pairs: Sequence[tuple[str, str]]) -> Results:
    """``CrossEncoder.predict``, without and with its activation."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    results = []
    for pair in pairs:
        logit = model.predict([pair], activation_fn=torch.nn.Identity(), show_progress_bar=False)
        results.append(np.stack([logit, model.predict([pair], show_progress_bar=False)], axis=1))
    return results


def zero_shot(folder: Path, pairs: Sequence[tuple[str, str]]) -> Results:
    """The logits of each pair, of which the pipeline ``zero-shot-classification`` truncates the first text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    results = []
    with torch.no_grad():
        for text, hypothesis in pairs:
            encoded = tokenizer(text, hypothesis, return_tensors="pt", truncation="only_first")
            results.append(model(**encoded).logits.numpy())
    return results
