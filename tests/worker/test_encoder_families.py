"""Families of encoders: each gives the results of transformers, alone and in any batch, or is refused.

The models are built here, small and with random weights large enough for a wrong mask or token type to show. The
reference is transformers with its own tokenizer, one text at a time. Models that need many lengths, such as those of
attention windows and blocks, get texts around these lengths; a letter is a token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.core.protocol.messages import Setup
from launcher.host.model.encoders import ENCODERS
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import Item, ItemBatch

LETTERS = "abcdefghijklmnopqrstuvwxyzäñøßéλжщקعकあ漢字한🙂👍🏽 .,!-0123456789"
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 57, 64, 65, 100, 126, 140)  # the last one is truncated
BOUND = 1e-5

# Sizes under the names that each config has for them.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "funnel": {"d_model": 64, "block_sizes": [1, 1, 1], "n_head": 4, "d_head": 16, "d_inner": 128,
               "initializer_std": 0.4},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
}  # fmt: skip
PLAIN: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "embedding_size": 64,
}
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "big_bird": {"block_size": 8, "num_random_blocks": 1, "attention_type": "original_full"},
    "eurobert": {"head_dim": 16, "num_key_value_heads": 4},
    "longformer": {"attention_window": [16, 8]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
    "openai_privacy_filter": {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 8, "num_local_experts": 4},
    "ultrabert": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
}
# The special tokens at the end, where the tokenizer of the family sets the token type 2 for one of them.
LAST_TYPED, FIRST_TYPED = frozenset({"xlnet"}), frozenset({"funnel"})


def save_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer whose tokens are single characters, with special tokens as in the family."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<pad>": 1, "<s>": 2, "</s>": 3, "<unk>": 4, "<mask>": 5}
    letters = {letter: 6 + place for place, letter in enumerate(dict.fromkeys(LETTERS))}
    tokenizer = Tokenizer(models.WordLevel({"<unused>": 0, **special, **letters}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single = "<s> $A </s>"
    if kind in LAST_TYPED:
        single = "$A </s> <s>:2"
    elif kind in FIRST_TYPED:
        single = "<s>:2 $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 3)])
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "cls_token": "<s>",
                "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>", "model_max_length": 128,
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}  # fmt: skip
    if kind in {"roberta", "xlm-roberta", "distilbert", "modernbert"}:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_model(folder: Path, kind: str, auto_class: str = "AutoModel", **config: Any) -> None:
    """A model of the given type with random weights, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "max_position_embeddings": 132, "pad_token_id": 1, "bos_token_id": 2,
             "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "initializer_range": 0.3,
             **SIZES.get(kind, PLAIN), **EXTRA.get(kind, {}), **config}  # fmt: skip
    if kind == "xlnet":
        del sizes["max_position_embeddings"]
    made = transformers.AutoConfig.for_model(kind, **sizes)
    model = getattr(transformers, auto_class).from_config(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # the row of the padding token, too, which some checkpoints have trained
                parameter.normal_(0, 0.25)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder, kind)


def texts(lengths: Sequence[int] = LENGTHS) -> list[str]:
    """Random texts with these numbers of letters."""
    chance = random.Random(7)
    return ["".join(chance.choice(LETTERS) for _ in range(length)) for length in lengths]


def expected_rows(folder: Path, auto_class: str, inputs: Sequence[str], **arguments: Any) -> list[np.ndarray]:
    """The rows of each text alone, by transformers."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, auto_class).from_pretrained(folder, **arguments).eval()
    rows = []
    for text in inputs:
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**{key: value for key, value in encoded.items() if accepts(model, key)})
        if auto_class == "AutoModel":
            hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
            rows.append(hidden.mean(1).numpy())
        else:
            rows.append(torch.softmax(output.logits, -1).reshape(-1, output.logits.shape[-1]).numpy())
    return rows


def accepts(model: Any, key: str) -> bool:
    import inspect

    parameters = inspect.signature(model.forward).parameters
    return key in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class Served:
    """A model as the worker computes it, in this process."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from launcher.worker.backends.eager import EagerBackend

        self.model_info = resolve(ModelOptions(model=str(folder), **options))
        trust = options.get("trust_remote_code", False)
        self.backend = EagerBackend(Setup(self.model_info, "fp32", "eager", (), trust_remote_code=trust))
        self.loaded = self.backend.load(lambda stage, done, detail: None)

    def items(self, inputs: Sequence[str]) -> list[Item]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(self.model_info.tokenizer_path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.model_info.max_length)
        items = []
        for encoding in tokenizer.encode_batch(list(inputs)):
            types = np.array(encoding.type_ids, dtype=np.uint8) if any(encoding.type_ids) else None
            items.append(Item(np.array(encoding.ids, dtype=np.int32), types))
        return items

    def rows(self, inputs: Sequence[str], size: int) -> list[np.ndarray]:
        """The rows of each text, in batches of this many."""
        items = self.items(inputs)
        rows: dict[int, np.ndarray] = {}
        for start in range(0, len(items), size):
            order = sorted(range(start, min(start + size, len(items))), key=lambda index: -len(items[index]))
            values = self.backend.run(ItemBatch.of([items[index] for index in order])).values
            counts = [len(items[index]) if self.model_info.rows == "token" else 1 for index in order]
            rows.update(zip(order, np.split(values, np.cumsum(counts)[:-1]), strict=True))
        return [rows[index] for index in range(len(items))]


def difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(one - other) / np.linalg.norm(one)) for one, other in zip(expected, found, strict=True)
    )


def assert_equal(expected: Sequence[np.ndarray], served: Served, inputs: Sequence[str]) -> None:
    assert min(difference(expected[:1], [rows]) for rows in expected[1:] if rows.shape == expected[0].shape) > 1e-3
    for size in (1, 3, len(inputs)):
        assert difference(expected, served.rows(inputs, size)) <= BOUND


# The others are in tests/models.
KINDS = (*(kind for kind, batching in ENCODERS.items() if batching != "packed"), "bert-generation",
         "jina_embeddings_v3", "ultrabert", "xmod")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedder_gives_the_vectors_of_transformers_alone_and_in_any_batch(kind, tmp_path) -> None:
    save_model(tmp_path, kind)
    served = Served(tmp_path, task="embed", max_length=128 if kind == "xlnet" else None)

    assert_equal(expected_rows(tmp_path, "AutoModel", texts()), served, texts())
