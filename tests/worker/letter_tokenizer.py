"""A tokenizer of letters, in a form that transformers and the launcher use as it is, for models built in tests."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

FIRST_LETTER = 5  # smaller ids are special ones of the models


def save_letter_tokenizer(folder: Path, size: int) -> None:
    """Write ``tokenizer.json`` with ``size`` ids, of which texts use those of the letters, and its config."""
    names = ["[PAD]", "[BOS]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    names += [f"[unused{place}]" for place in range(size - len(names))]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
