"""Embeddings of decoders and of T5 encoders, packed, against the library: alone and in a batch.

The models have attention windows shorter than the texts, and random weights that make every part matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from launcher.core.protocol.messages import Setup
from launcher.worker.backends.eager import EagerBackend
from launcher.worker.interfaces import ItemBatch
from launcher.worker.layouts.padded import PaddedLayout
from launcher.worker.load_model import attention_windows, convert_model, load_model
from launcher.worker.numerics import largest_relative_error
from tests.worker.conftest import make_model_info
from tests.worker.letter_tokenizer import save_letter_tokenizer

VOCABULARY, MAX_LENGTH, WINDOW = 200, 160, 24
SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
T5: Mapping[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
}  # fmt: skip
WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
# Name: model type, and what is special about its config.
DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma": ("gemma", {}),
    "gemma2, which limits scores": ("gemma2", {**WINDOWS, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", WINDOWS),
    "gemma3, bidirectional": ("gemma3_text", {**WINDOWS, "use_bidirectional_attention": True}),
    "llama": ("llama", {}),
    "llama with llama3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "llama with yarn positions": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {**WINDOWS, "use_sliding_window": True}),
    "qwen3": ("qwen3", {}),
}
ENCODER_DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mt5": ("mt5", T5),
    "t5": ("t5", T5),
    "umt5": ("umt5", T5),
}
ENCODER_CLASSES = {"mt5": "MT5EncoderModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
LENGTHS = (MAX_LENGTH, MAX_LENGTH - 1, 60, 17, 17, 1)


def make(kind: str, settings: Mapping[str, Any], *, head: bool = False) -> Any:
    """A model with random weights; with its generative head if ``head`` is set."""
    torch.manual_seed(0)
    sizes = {**(settings if kind in ENCODER_CLASSES else {**SIZES, **settings}), "vocab_size": VOCABULARY}
    config = transformers.AutoConfig.for_model(kind, pad_token_id=0, **sizes)
    if kind in ENCODER_CLASSES:
        name = ENCODER_CLASSES[kind].replace("EncoderModel", "ForConditionalGeneration" if head else "EncoderModel")
        model = getattr(transformers, name)(config)
    else:
        auto = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.2 / parameter.shape[-1] ** 0.5)
    return model.eval()


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    save_letter_tokenizer(folder, VOCABULARY)


def setup_of(folder: Path, model: Any, dtype: str = "fp32") -> Setup:
    made = make_model_info(
        folder=str(folder),
        architecture=type(model).__name__,
        hidden_size=32,
        vocab_size=VOCABULARY,
        max_length=MAX_LENGTH,
        normalize=False,
    )
    return Setup(made, dtype, "eager", ())  # type: ignore[arg-type]


def serve(setup: Setup) -> tuple[EagerBackend, Any]:
    backend = EagerBackend(setup)
    with torch.no_grad():
        return backend, backend.load(lambda stage, done, detail: None)


def batch() -> ItemBatch:
    """Items up to the limit, some of which contain the padding id."""
    ids = 5 + np.arange(sum(LENGTHS), dtype=np.int32) * 31 % 190
    ids[[3, -40, -20, -2]] = 0
    return ItemBatch(ids, LENGTHS)


def means_alone(model: Any) -> np.ndarray:
    """What the library computes for each item alone, averaged over its tokens."""
    means = []
    with torch.no_grad():
        for ids in np.split(batch().ids.astype(np.int64), np.cumsum(LENGTHS)[:-1]):
            inputs = torch.from_numpy(ids[None])
            hidden = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state
            means.append(hidden[0].mean(0).numpy())
    return np.stack(means)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_an_item_has_the_same_vector_packed_padded_and_alone(name, tmp_path) -> None:
    kind, settings = {**DECODERS, **ENCODER_DECODERS}[name]
    model = make(kind, settings)
    save(model, tmp_path)
    expected = means_alone(model)

    setup = setup_of(tmp_path, model)
    with torch.no_grad():
        padded = PaddedLayout(load_model(setup), setup.model_info).run(batch()).values
    backend, loaded = serve(setup)

    assert loaded.packed
    assert not any("not traced" in note for note in loaded.notes)
    assert largest_relative_error(expected, backend.run(batch()).values) < 1e-5
    assert largest_relative_error(expected, padded) < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "gemma3, bidirectional", "mistral", "qwen2"])
def test_the_windows_of_these_models_matter_for_these_items(name) -> None:
    """Otherwise the test above could not fail."""
    kind, settings = DECODERS[name]
    unlimited = {**settings, "sliding_window": MAX_LENGTH * 2}
    error = largest_relative_error(means_alone(make(kind, settings)), means_alone(make(kind, unlimited)))

    assert error > 0.01


@pytest.mark.parametrize("name", ["gemma3", "gemma3, bidirectional", "mistral", "qwen2"])
def test_the_sizes_of_attention_windows_are_found(name) -> None:
    kind, settings = DECODERS[name]
    window = WINDOW // 2 + 1 if settings.get("use_bidirectional_attention") else WINDOW  # as Gemma 3 stores it

    assert window in attention_windows(make(kind, settings))


@pytest.mark.parametrize(("kind", "settings"), [("qwen3", {}), ("t5", T5)])
def test_only_the_part_of_a_generative_model_that_embeds_is_loaded(kind, settings, tmp_path) -> None:
    model = make(kind, settings, head=True)
    save(model, tmp_path)

    loaded = load_model(setup_of(tmp_path, model))

    assert type(loaded).__name__ == ENCODER_CLASSES.get(kind, "Qwen3Model")
    assert loaded.config.use_cache is False


def test_the_frequencies_of_rotary_positions_stay_in_fp32(tmp_path) -> None:
    model = make("gemma3_text", WINDOWS)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}

    convert_model(model, torch.bfloat16)

    assert before
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2, which limits scores", "gemma3, bidirectional", "qwen3", "t5"])
def test_results_in_bf16_are_those_of_the_library_up_to_rounding(name, tmp_path) -> None:
    kind, settings = {**DECODERS, **ENCODER_DECODERS}[name]
    model = make(kind, settings)
    save(model, tmp_path)
    backend, loaded = serve(setup_of(tmp_path, model, "bf16"))

    expected, found = means_alone(model), backend.run(batch()).values

    assert loaded.packed
    cosines = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.995
