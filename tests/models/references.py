"""The results of the libraries: one function per task, each for one text at a time, so that nothing is padded.

Each takes the folder of a model and the inputs, and returns one array per input: float32, rows × width, as the worker
sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Results = list[NDArray[np.float32]]


def embed(folder: Path, texts: Sequence[str]) -> Results:
    """``SentenceTransformer.encode``."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return [model.encode([text], show_progress_bar=False) for text in texts]


def classify(folder: Path, texts: Sequence[str]) -> Results:
    """The pipeline ``text-classification``, in the order of the labels."""
    from transformers import pipeline

    run = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    order = [label for _, label in sorted(run.model.config.id2label.items())]
    found = [{entry["label"]: entry["score"] for entry in run([text], truncation=True)[0]} for text in texts]
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
