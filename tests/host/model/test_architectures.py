"""Which decoders and encoder-decoders are embedders, and which of their weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.errors import UsageError
from launcher.host.model.architectures import read_architecture, unused_weights
from launcher.host.model.json_files import ModelErrors
from launcher.host.model.weights import weight_bytes
from launcher.options import ModelOptions

QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
REFUSE = ModelErrors("my-model")


def architecture_of(config: dict[str, Any], task: str = "auto", *, embedder: bool = False) -> str:
    options = ModelOptions(model="my-model", task=task)  # type: ignore[arg-type]
    return read_architecture(config, options, REFUSE, embedder=embedder)


@pytest.mark.parametrize("config", [QWEN3, T5])
def test_a_generative_model_is_an_embedder_if_files_say_how_or_on_request(config) -> None:
    (architecture,) = config["architectures"]
    assert architecture_of(config, embedder=True) == architecture
    assert architecture_of(config, "embed") == architecture
    with pytest.raises(UsageError, match=r"generates text, and it has no modules\.json that defines its embeddings"):
        architecture_of(config)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaModel"]},
        {"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True},
        {"model_type": "mt5", "architectures": ["MT5EncoderModel"], "is_encoder_decoder": True},
        {"model_type": "mistral"},
    ],
)
def test_a_decoder_without_a_generative_head_is_an_embedder(config) -> None:
    assert architecture_of(config) == config.get("architectures", ["mistral"])[0]


@pytest.mark.parametrize("architecture", ["Qwen2ForTokenClassification", "Qwen2ForSequenceClassification"])
def test_other_heads_of_decoders_are_refused(architecture) -> None:
    config = {"model_type": "qwen2", "architectures": [architecture]}

    with pytest.raises(UsageError, match="heads of qwen2 models are not supported; only embeddings can be served"):
        architecture_of(config, embedder=True)


@pytest.mark.parametrize(("config", "loaded"), [(QWEN3, 400 + 3 + 70), (T5, 400 + 3), ({"model_type": "bert"}, 873)])
def test_the_weights_that_generate_text_take_no_memory(tmp_path: Path, config, loaded) -> None:
    shapes = {"shared.weight": (50, 8), "encoder.a": (3,), "decoder.a": (70,), "lm_head.weight": (50, 8)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")

    assert weight_bytes(tmp_path, config, REFUSE, unused=unused_weights(config)) == loaded * 4
