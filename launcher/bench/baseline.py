"""Measures the baseline: a plain transformers script on all cores, in fp32, as in model cards.

Tokenizing with padding, forward pass, mean pooling, normalization; no queue, no HTTP. Only for models on disk: a plain
script has no ``random:`` models.
"""

from __future__ import annotations

import time
from typing import Any

from launcher.bench.workload import Workload
from launcher.core.percentile import percentile
from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.worker.temporary_folder import tolerate_absence


def run_baseline(model_info: ModelInfo, workload: Workload, batch: int) -> dict[str, Any]:
    """Embed all texts in order, ``batch`` at a time; returns rates and latencies per call.

    Raises ``UsageError`` for models that this script cannot run.
    """
    if model_info.shape is not None or model_info.task != "embed":
        raise UsageError(
            f"--model {model_info.requested}: must be demo, or an embedding model in a folder or on the Hub"
        )

    tolerate_absence()
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_info.folder)
    model = AutoModel.from_pretrained(model_info.folder, dtype=torch.float32).eval()

    def embed(texts: list[str]) -> int:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=model_info.max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        torch.nn.functional.normalize(pooled, dim=1)
        return int(encoded["attention_mask"].sum())

    parts = [list(workload.texts[start : start + batch]) for start in range(0, len(workload.texts), batch)]
    for part in parts[:3]:
        embed(part)
    calls, tokens = [], 0
    for part in parts:
        started = time.perf_counter()
        tokens += embed(part)
        calls.append(time.perf_counter() - started)
    return {
        "model": f"{model_info.name} ({model_info.architecture}), fp32",
        "texts": len(workload.texts),
        "tokens": tokens,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "texts_per_second": round(len(workload.texts) / sum(calls), 1),
        "tokens_per_second": round(tokens / sum(calls), 1),
        "call_ms": {f"p{p}": round(percentile(calls, p) * 1e3, 2) for p in (50, 99)},
    }
