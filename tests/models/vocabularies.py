"""Small tokenizers for the models of the table, made on the spot, in the classes that real models use.

Vocabularies are small, so that common words are split and rare characters are unknown. Each function returns a
tokenizer of transformers; ``model_max_length`` is the length that texts are truncated to.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

from launcher.bench.workload import builtin_workload
from tests.models.texts import TEXTS

MAX_LENGTH = 72
VOCABULARY = 600
LONGEST_PART = 8  # characters of a part of a word in WordPiece vocabularies


@functools.cache
def _corpus() -> tuple[str, ...]:
    return (*TEXTS, *builtin_workload(300, seed=3).texts)


# --- WordPiece


def bert(**settings: Any) -> Any:
    """A WordPiece tokenizer with a vocabulary of its own."""
    from transformers import BertTokenizer

    vocabulary = {token: id for id, token in enumerate(_wordpieces())}
    return BertTokenizer(vocab=vocabulary, model_max_length=MAX_LENGTH, **settings)


def mpnet() -> Any:
    """A WordPiece tokenizer with the special tokens of MPNet."""
    from transformers import MPNetTokenizer

    vocabulary = {token: id for id, token in enumerate(("<s>", "<pad>", "</s>", "[UNK]", "<mask>", *_wordpieces()[5:]))}
    return MPNetTokenizer(vocab=vocabulary, model_max_length=MAX_LENGTH)


@functools.cache
def _wordpieces() -> list[str]:
    """By id; the first five are special tokens.

    The most frequent parts of the words in the corpus. Not trained with ``tokenizers``, whose WordPiece vocabularies
    differ from run to run.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    characters: set[str] = set()
    for text in _corpus():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            characters.update(word)
            counts[word] += 1
            for start, end in itertools.combinations(range(len(word) + 1), 2):
                if 1 < end - start <= LONGEST_PART:
                    counts["##" * (start > 0) + word[start:end]] += 1
    single = [piece for character in sorted(characters) for piece in (character, f"##{character}")]
    parts = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(piece) > 1]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *single, *parts]))[:VOCABULARY]


# --- byte-level BPE


def roberta(**settings: Any) -> Any:
    """A byte-level BPE tokenizer; its padding token has the id 1."""
    from transformers import RobertaTokenizer

    vocabulary, merges = _byte_pairs()
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH, **settings)


def deberta() -> Any:
    """A byte-level BPE tokenizer with the special tokens of BERT."""
    from transformers import DebertaTokenizer

    vocabulary, merges = _byte_pairs()
    renamed = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
    vocabulary = {renamed.get(token, token): id for token, id in vocabulary.items()}
    return DebertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def modernbert() -> Any:
    """A byte-level BPE tokenizer whose file is used as it is, as that of ModernBERT."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _byte_pairs()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>", model_max_length=MAX_LENGTH, **names
    )


def decoder() -> Any:
    """A byte-level BPE tokenizer that ends each text with the token that decoder embedders pool."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _byte_pairs()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", model_max_length=MAX_LENGTH
    )


@functools.cache
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [(first, second) for first, second in merges]


# --- Unigram, as in SentencePiece files


def xlm_roberta() -> Any:
    """A Unigram tokenizer; its padding token has the id 1."""
    from transformers import XLMRobertaTokenizer

    return XLMRobertaTokenizer(vocab=_pieces(("<s>", "<pad>", "</s>", "<unk>")), model_max_length=MAX_LENGTH)


def camembert() -> Any:
    """A Unigram tokenizer in the class of CamemBERT."""
    from transformers import CamembertTokenizer

    special = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    return CamembertTokenizer(vocab=_pieces(special), model_max_length=MAX_LENGTH)


def albert() -> Any:
    """A Unigram tokenizer that lower-cases and strips accents."""
    from transformers import AlbertTokenizer

    return AlbertTokenizer(vocab=_pieces(("<pad>", "<unk>", "[CLS]", "[SEP]")), model_max_length=MAX_LENGTH)


def rembert() -> Any:
    """A Unigram tokenizer in the class of RemBERT."""
    from transformers import RemBertTokenizer

    return RemBertTokenizer(vocab=_pieces(("<pad>", "<unk>", "[CLS]", "[SEP]")), model_max_length=MAX_LENGTH)


def deberta_v2() -> Any:
    """A Unigram tokenizer in the class of DeBERTa-v2 and v3."""
    from transformers import DebertaV2Tokenizer

    return DebertaV2Tokenizer(vocab=_pieces(("[PAD]", "[CLS]", "[SEP]", "[UNK]")), unk_id=3,
                              model_max_length=MAX_LENGTH)  # fmt: skip


def unigram_as_it_is() -> Any:
    """The tokenizer of XLM-RoBERTa, in a file that is used as it is, so that nothing has to be converted."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=xlm_roberta().backend_tokenizer, unk_token="<unk>", mask_token="<mask>",
        model_max_length=MAX_LENGTH, **names,
    )  # fmt: skip


def xlnet() -> Any:
    """A Unigram tokenizer that puts its special tokens at the end, the last one with a token type of its own."""
    from transformers import XLNetTokenizer

    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>")
    return XLNetTokenizer(vocab=_pieces(special), model_max_length=MAX_LENGTH)


def t5() -> Any:
    """A Unigram tokenizer that ends each text with its end token."""
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=_pieces(("<pad>", "</s>", "<unk>")), extra_ids=0, model_max_length=MAX_LENGTH)


def _pieces(special: tuple[str, ...]) -> list[tuple[str, float]]:
    return [*((token, 0.0) for token in special), *_trained_pieces(), ("<mask>", 0.0)]


@functools.cache
def _trained_pieces() -> tuple[tuple[str, float], ...]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, unk_token="<unk>", special_tokens=["<unk>"],
                                      show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    pieces = sorted(piece for piece, _ in json.loads(tokenizer.to_str())["model"]["vocab"] if piece != "<unk>")
    # The trained scores differ from run to run; these prefer few and long pieces.
    return tuple((piece, len(piece) - 12.0 - rank / len(pieces)) for rank, piece in enumerate(pieces))
