"""The aggregation of tokens to entities against transformers' own token-classification pipeline, from equal scores.

The tokenizers differ in how the pipeline finds words: WordPiece marks continuing tokens, the others do not.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tasks.entities import Aggregation
from launcher.front.tasks.token_labels import TokenLabeler, label_span
from launcher.front.tasks.words import WordStarts
from launcher.front.tokenizer import FrontTokenizer

pytestmark = pytest.mark.slow

IOB = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "GEO-LOC", "I-O")
BIOES = ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
TEXTS = [
    "Angela Merkel met the board of Siemens in Munich, and then flew to Paris with Emmanuel Macron.",
    "Ça va, Zoë? 🙂 In Köln, at the e\u0301cole; microelectronics-laboratories",
    "  white   space \n\t around [UNK] <unk> and unbelievably long-winded words ",
    "東京 is Tokyo",
    "a",
]


@pytest.fixture(scope="module")
def demo_folder() -> Path:
    from launcher.host.model.resolve import demo_folder

    return demo_folder()


def word_piece(demo_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder / "tokenizer.json"))


def byte_level(demo_folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=specials)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram(demo_folder: Path) -> Tokenizer:
    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<pad>", 0.0), ("▁Angela", -1.0), ("▁M", -2.0)]
    pieces += [("er", -2.0), ("▁", -3.0), ("kel", -2.0), ("▁is", -2.5)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyzS,-."]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def pipeline_for(tokenizer: Tokenizer, labels: tuple[str, ...]) -> Any:
    """transformers' pipeline with this tokenizer, whose model gives each token scores that depend on its id."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast
    from transformers.pipelines import TokenClassificationPipeline

    unknown = "[UNK]" if tokenizer.token_to_id("[UNK]") is not None else "<unk>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, model_input_names=["input_ids"])
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label=dict(enumerate(labels)), initializer_range=1.0,
    )  # fmt: skip
    torch.manual_seed(3)
    return TokenClassificationPipeline(model=BertForTokenClassification(config).eval(), tokenizer=wrapped)


def scores_of(pipeline: Any, text: str) -> np.ndarray:
    import torch

    with torch.no_grad():
        inputs = pipeline.tokenizer(text, return_tensors="pt")
        return torch.softmax(pipeline.model(**inputs).logits[0], dim=1).numpy()


@pytest.mark.parametrize("labels", [IOB, BIOES])
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("make_tokenizer", [word_piece, byte_level, unigram])
def test_entities_are_those_of_the_pipeline(
    make_tokenizer: Callable[[Path], Tokenizer], aggregation: Aggregation, labels: tuple[str, ...],
    tmp_path: Path, demo_folder: Path,
) -> None:  # fmt: skip
    tokenizer = make_tokenizer(demo_folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pipeline = pipeline_for(tokenizer, labels)
    front = FrontTokenizer(tagger_in(tmp_path, labels, tokenizer.get_vocab_size()), text_characters=10_000)
    labeler = TokenLabeler(labels, frozenset(), WordStarts(front.vocabulary))
    tokenized = asyncio.run(front.texts(TEXTS))

    total = 0
    for text, ids, spans in zip(TEXTS, tokenized.items, tokenized.spans, strict=True):
        found = list(labeler.of_text(scores_of(pipeline, text), ids, (text, spans), aggregation))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pipeline(text, aggregation_strategy=aggregation)
        places = [label_span("", 0, text, e["start"], e["end"]) for e in expected]
        assert [(e.label, e.start, e.end) for e in found] == [
            (e["entity_group"], place.start, place.end) for e, place in zip(expected, places, strict=True)
        ]
        assert [e.score for e in found] == pytest.approx([float(e["score"]) for e in expected], rel=1e-5)
        total += len(found)
    assert total > 5


@pytest.mark.parametrize("make_tokenizer", [word_piece, byte_level, unigram])
def test_the_strategies_differ_for_these_texts(
    make_tokenizer: Callable[[Path], Tokenizer], tmp_path: Path, demo_folder: Path
) -> None:
    tokenizer = make_tokenizer(demo_folder)
    tokenizer.no_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    front = FrontTokenizer(tagger_in(tmp_path, IOB, tokenizer.get_vocab_size()), text_characters=10_000)
    labeler = TokenLabeler(IOB, frozenset(), WordStarts(front.vocabulary))
    tokenized = asyncio.run(front.texts(TEXTS[:1]))
    scores = np.random.default_rng(1).dirichlet(np.full(len(IOB), 0.3), len(tokenized.items[0])).astype(np.float32)
    results = [
        list(labeler.of_text(scores, tokenized.items[0], (TEXTS[0], tokenized.spans[0]), aggregation))
        for aggregation in ("simple", "first", "average", "max")
    ]
    assert all(a != b for index, a in enumerate(results) for b in results[:index])


def tagger_in(folder: Path, labels: tuple[str, ...], vocab_size: int) -> ModelInfo:
    return ModelInfo(
        name="tagger", requested="tagger", task="tag", folder=str(folder), shape=None, architecture="", hidden_size=8,
        layers=1, vocab_size=vocab_size, max_length=256, pad_id=0, pooling="mean", normalize=True, labels=labels,
        weight_bytes=1,
    )  # fmt: skip
