"""Small tokenizers of every kind, trained on the spot, in the files in which models of that kind come.

Each function writes the tokenizer files of one kind to a folder and returns the config.json of its model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from launcher.host.model.resolve import demo_folder

Config = dict[str, Any]

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and it doesn't stop at 12 °C.",
    "Ein naïver Satz über Straßen, Äpfel, Öl und Übermut in İstanbul.",
    "中文分詞測試，日本語のテキスト。한국어 텍스트",
    "Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "https://example.org/a_b-c?d=e user@example.com 3.14159 1,000,000",
    "ALL CAPS AND smaller words, one two three four five six seven eight nine ten",
    "def f(x): return {'a': [x**2, x != 3]} # comment & more <b>bold</b>",
] * 30


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def sentencepiece_model(path: Path, kind: str, **options: Any) -> None:
    """Train a sentencepiece model, by default with the ids of T5's special tokens."""
    source = path.with_suffix(".sentences")
    source.write_text("\n".join(SENTENCES))
    settings = {"vocab_size": 330, "character_coverage": 0.99, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(
        input=str(source), model_prefix=str(path.with_suffix("")), model_type=kind, **settings
    )
    path.with_suffix(".vocab").unlink()
    source.unlink()


def byte_level(
    vocabulary: int = 500, special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
) -> Tokenizer:
    """A byte-level BPE tokenizer, as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


# --- the kinds


def bert_cased_by_config(folder: Path) -> Config:
    """A tokenizer.json that lower-cases, with a tokenizer_config.json that does not."""
    shutil.copy(demo_folder(verify=False) / "tokenizer.json", folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    return {"model_type": "bert", "vocab_size": 30522}


def bert_as_it_is(folder: Path) -> Config:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(demo_folder(verify=False) / name, folder)
    return {"model_type": "bert", "vocab_size": 30522}


def bert_vocab_only(folder: Path) -> Config:
    shutil.copy(demo_folder(verify=False) / "vocab.txt", folder)
    return {"model_type": "bert", "vocab_size": 30522}


def bert_added_tokens(folder: Path) -> Config:
    """Added tokens with every flag, in tokenizer_config.json only."""
    shutil.copy(demo_folder(verify=False) / "tokenizer.json", folder)
    own = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in own}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    decoder |= {
        "30522": {"content": "<left>", **flags, "lstrip": True},
        "30523": {"content": "<right>", **flags, "rstrip": True, "special": True},
        "30524": {"content": "word", **flags, "single_word": True},
        "30525": {"content": "Càfé", **flags, "normalized": True},
    }
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder, "cls_token": "<right>"},
    )
    return {"model_type": "bert", "vocab_size": 30530}


def bert_legacy_files(folder: Path) -> Config:
    """vocab.txt with special_tokens_map.json and added_tokens.json, as transformers 2 to 4 saved it."""
    shutil.copy(demo_folder(verify=False) / "vocab.txt", folder)
    write_json(folder / "special_tokens_map.json", {"sep_token": "[MASK]", "additional_special_tokens": ["[E1]"]})
    write_json(folder / "added_tokens.json", {"[E1]": 30522, "plain": 30523})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast", "strip_accents": False})
    return {"model_type": "bert", "vocab_size": 30530}


def roberta(folder: Path) -> Config:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"model_type": "roberta", "vocab_size": 500}


def roberta_slow_files(folder: Path) -> Config:
    byte_level().model.save(str(folder))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True})
    return {"model_type": "roberta", "vocab_size": 510}


def modernbert(folder: Path) -> Config:
    tokenizer = byte_level(special=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_tokens(["  ", "|||EMAIL|||"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "cls_token": "[CLS]",
            "pad_token": "[PAD]",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 8192,
        },
    )
    return {"model_type": "modernbert", "vocab_size": 510}


def qwen(folder: Path) -> Config:
    tokenizer = byte_level(special=("<|endoftext|>", "<|im_start|>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "padding_side": "left"},
    )
    return {"model_type": "qwen3", "vocab_size": 500}


def xlm_roberta(folder: Path) -> Config:
    sentencepiece_model(folder / "sentencepiece.bpe.model", "unigram")
    return {"model_type": "xlm-roberta", "vocab_size": 200}


def camembert(folder: Path) -> Config:
    sentencepiece_model(folder / "sentencepiece.bpe.model", "unigram")
    return {"model_type": "camembert", "vocab_size": 200}


def deberta_v2(folder: Path) -> Config:
    sentencepiece_model(
        folder / "spm.model",
        "unigram",
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )  # fmt: skip
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False, "tokenizer_class": "DebertaV2Tokenizer"})
    return {"model_type": "deberta-v2", "vocab_size": 200}


def albert(folder: Path) -> Config:
    sentencepiece_model(
        folder / "spiece.model",
        "unigram",
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>", control_symbols="[CLS],[SEP],[MASK]",
    )  # fmt: skip
    return {"model_type": "albert", "vocab_size": 200}


def t5(folder: Path) -> Config:
    sentencepiece_model(folder / "spiece.model", "unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return {"model_type": "t5", "vocab_size": 450}


def xlnet(folder: Path) -> Config:
    sentencepiece_model(
        folder / "spiece.model",
        "unigram",
        unk_id=0, bos_id=1, eos_id=2, control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>,<eop>",
    )  # fmt: skip
    return {"model_type": "xlnet", "vocab_size": 200}


def llama(folder: Path) -> Config:
    sentencepiece_model(folder / "tokenizer.model", "bpe", byte_fallback=True, vocab_size=600, split_digits=True)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False},
    )
    return {"model_type": "llama", "vocab_size": 610}


def gemma(folder: Path) -> Config:
    sentencepiece_model(
        folder / "tokenizer.model",
        "bpe",
        byte_fallback=True, vocab_size=600, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols="<mask>,<unused0>,\t", add_dummy_prefix=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True})
    return {"model_type": "gemma3_text", "vocab_size": 610}


KINDS: dict[str, Callable[[Path], Config]] = {
    made.__name__: made
    for made in (
        bert_as_it_is, bert_cased_by_config, bert_vocab_only, bert_added_tokens, bert_legacy_files, roberta,
        roberta_slow_files, modernbert, qwen, xlm_roberta, camembert, deberta_v2, albert, t5, xlnet, llama, gemma,
    )
}  # fmt: skip
# Those whose tokenizer.json is used as it is.
AS_THEY_ARE = {"bert_as_it_is", "roberta", "modernbert"}
