"""Small models with the files of well-known models on the Hub, key by key: each is served, with the library's results.

Separate from the table of models because their files are those of former versions of the libraries, which today's
versions no longer write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.models import families, references, vocabularies
from tests.models.compare import Served, relative_error
from tests.models.references import Results
from tests.models.texts import PAIRS, TEXTS

BOUND = 1e-5
FORMER = "sentence_transformers.models."
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
BERT_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
               "mask_token": "[MASK]"}  # fmt: skip
MPNET_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "[UNK]",
                "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
OF_BERT: Mapping[str, Any] = {"family": "bert", "tokenizer": vocabularies.bert}
BERT_CONFIG = {"_name_or_path": "model", "gradient_checkpointing": False, "position_embedding_type": "absolute",
               "transformers_version": "4.8.2", "use_cache": True, "torch_dtype": "float32"}  # fmt: skip
BERT_TOKENIZER = {**BERT_TOKENS, "do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None,
                  "name_or_path": "model", "do_basic_tokenize": True, "never_split": None,
                  "tokenizer_class": "BertTokenizer", "model_max_length": 72}  # fmt: skip
VERSIONS = {"__version__": {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}}


def modules(*names: str) -> list[dict[str, Any]]:
    """A modules.json of version 2."""
    return [
        {"idx": index, "name": str(index), "path": f"{index}_{name}" if index else "", "type": FORMER + name}
        for index, name in enumerate(names)
    ]


def pooling(*flags: str, **others: Any) -> dict[str, Any]:
    """The config of a Pooling of version 2."""
    modes = {f"pooling_mode_{mode}": mode in flags for mode in (*MODES, *flags)}
    return {"word_embedding_dimension": families.HIDDEN, **modes, **others}


@dataclass(frozen=True, slots=True)
class Published:
    """``build`` writes the weights and today's files; ``config`` is added to config.json, and ``files`` replace
    others."""

    build: Callable[[Path], None]
    config: Mapping[str, Any]
    files: Mapping[str, Any]
    reference: Callable[[Path, Sequence[Any]], Results] = references.embed
    inputs: Sequence[Any] = TEXTS
    without: Sequence[str] = field(default=("dtype",))

    def write(self, folder: Path) -> None:
        """Write the folder."""
        self.build(folder)
        known = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in known.items() if key not in self.without}
        for name, value in {**self.files, "config.json": {**config, **self.config}}.items():
            (folder / name).write_text(json.dumps(value))


EMBEDDER = modules("Transformer", "Pooling", "Normalize")
CASES: Mapping[str, Published] = {
    "all-MiniLM-L6-v2": Published(
        partial(families.save_embedder, **OF_BERT), BERT_CONFIG,
        {"modules.json": EMBEDDER, "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": False},
         "config_sentence_transformers.json": VERSIONS, "1_Pooling/config.json": pooling("mean_tokens"),
         "tokenizer_config.json": BERT_TOKENIZER, "special_tokens_map.json": BERT_TOKENS,
         "data_config.json": [{"name": "data"}]},
    ),
    "all-mpnet-base-v2": Published(
        partial(families.save_embedder, family="mpnet", tokenizer=vocabularies.mpnet),
        {"_name_or_path": "microsoft/mpnet-base", "transformers_version": "4.8.2", "torch_dtype": "float32"},
        {"modules.json": EMBEDDER, "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": False},
         "config_sentence_transformers.json": VERSIONS, "1_Pooling/config.json": pooling("mean_tokens"),
         "tokenizer_config.json": {**MPNET_TOKENS, "do_lower_case": True, "tokenize_chinese_chars": True,
                                   "strip_accents": None, "model_max_length": 72, "special_tokens_map_file": None,
                                   "name_or_path": "microsoft/mpnet-base", "tokenizer_class": "MPNetTokenizer"},
         "special_tokens_map.json": {**MPNET_TOKENS, "mask_token": {
             "content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}}},
    ),
    "mxbai-embed-large-v1": Published(
        partial(families.save_embedder, **OF_BERT), BERT_CONFIG,
        {"modules.json": modules("Transformer", "Pooling"),
         "sentence_bert_config.json": {"max_seq_length": 60, "do_lower_case": False},
         "config_sentence_transformers.json": {
             **VERSIONS, "prompts": {"query": "Represent this sentence for searching relevant passages: "},
             "default_prompt_name": None, "similarity_fn_name": "cosine"},
         "1_Pooling/config.json": pooling("cls_token", "weightedmean_tokens", "lasttoken", include_prompt=True,
                                          pooling_mode_weightedmean_tokens=False, pooling_mode_lasttoken=False),
         "tokenizer_config.json": {**BERT_TOKENIZER, "clean_up_tokenization_spaces": True, "max_length": 50,
                                   "stride": 0, "truncation_side": "right",
                                   "truncation_strategy": "longest_first"}},
    ),
    "Qwen3-Embedding": Published(
        partial(families.save_embedder, family="qwen3", tokenizer=vocabularies.decoder, pooling="lasttoken"),
        {"architectures": ["Qwen3ForCausalLM"], "max_window_layers": 28, "rope_scaling": None, "rope_theta": 1000000,
         "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True, "use_cache": True,
         "torch_dtype": "float32", "transformers_version": "4.51.3"},
        {"modules.json": EMBEDDER, "generation_config.json": {"bos_token_id": 0},
         "config_sentence_transformers.json": {
             "prompts": {"query": "Instruct: Given a web search query\nQuery:", "document": ""},
             "default_prompt_name": None, "similarity_fn_name": "cosine"},
         "1_Pooling/config.json": pooling("lasttoken", include_prompt=True)},
        without=("dtype", "rope_parameters", "layer_types"),
    ),
    "ms-marco-MiniLM-L6-v2": Published(
        partial(families.save_classifier, **OF_BERT, labels=1),
        {**BERT_CONFIG, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
         "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}},
        {"tokenizer_config.json": BERT_TOKENIZER, "special_tokens_map.json": BERT_TOKENS},
        references.rerank, PAIRS,
    ),
    "bert-base-NER": Published(
        partial(families.save_tagger, **OF_BERT),
        {"_num_labels": 5, "output_past": True,
         "id2label": {"0": "O", "1": "B-MISC", "2": "I-MISC", "3": "B-PER", "4": "I-PER"},
         "label2id": {"B-MISC": 1, "B-PER": 3, "I-MISC": 2, "I-PER": 4, "O": 0}},
        {"tokenizer_config.json": {"do_lower_case": True, "max_len": 72}, "special_tokens_map.json": BERT_TOKENS,
         "added_tokens.json": {}},
        references.tag,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_a_published_model_are_served_exactly(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = tmp_path / "model"
    case.write(folder)
    expected = case.reference(folder, case.inputs)
    with Served(folder, {}) as served:
        assert relative_error(expected, served.results(case.inputs, len(case.inputs))) <= BOUND
