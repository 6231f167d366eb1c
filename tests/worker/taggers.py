"""Small token classifiers with random weights, to save and serve in tests."""

from __future__ import annotations

import shutil
from pathlib import Path

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def save_tagger(folder: Path, demo_folder: Path, layers: int = 2) -> None:
    """Save a BERT for token classification with the tokenizer of the demo model."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForTokenClassification(BertConfig(**sizes, id2label=dict(enumerate(LABELS))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that scores are far from equal
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder / name, folder / name)
