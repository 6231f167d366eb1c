"""Loads a transformers model in fp32, from its files or with random weights.

Separate from the backends because those that convert a PyTorch model start here too. What is done with the model does
not belong here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig
from transformers.modeling_outputs import BaseModelOutput

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import SHAPES, ModelInfo
from launcher.worker.interfaces import ModelError, one_line
from launcher.worker.tasks.create_task import Task, task_class

ENCODER_DECODER_HEADS = ("EncoderModel", "Model", "ForConditionalGeneration")
# Encoder-decoder models of which only the encoder is loaded, as sentence-transformers does: the classes of transformers
# by architecture, or by model type where the config names no architecture.
ENCODERS_OF: Mapping[str, str] = {
    **{f"T5{name}": "T5EncoderModel" for name in ENCODER_DECODER_HEADS},
    **{f"MT5{name}": "MT5EncoderModel" for name in ENCODER_DECODER_HEADS},
    **{f"UMT5{name}": "UMT5EncoderModel" for name in ENCODER_DECODER_HEADS},
    **{name.lower(): f"{name}EncoderModel" for name in ("T5", "MT5", "UMT5")},
}

# Attributes of a config that have the size of an attention window, or of a part of a text that attends only to itself.
WINDOW_ATTRIBUTES = ("sliding_window", "local_attention", "attention_window", "attention_chunk_size", "window_size")

SEED = 0  # of random weights: every instance must have the same ones


def load_model(setup: Setup) -> torch.nn.Module:
    """The model in fp32 and in evaluation mode. Raises ``ModelError`` if transformers cannot load its files, or if
    they lack weights."""
    model_info = setup.model_info
    task = task_class(model_info)
    model: Any = _random_model(model_info, task) if model_info.shape is not None else _from_files(setup, task)
    for name in () if has_own_code(model) else task.unused_modules:
        if hasattr(model, name):
            # Not None: some models call the module without a check.
            setattr(model, name, torch.nn.Identity())
    for config in _configs(model):
        if getattr(config, "use_cache", False):
            config.use_cache = False  # of keys and values, for generation
        if getattr(config, "return_dict", True) is not True:
            config.return_dict = True  # the libraries request this in each call
    return TextTower(model).eval() if model_info.text_features else model.eval()


def _from_files(setup: Setup, task: type[Task]) -> Any:
    """The model in the folder. Raises ``ModelError``."""
    model_info = setup.model_info
    encoder = ENCODERS_OF.get(model_info.architecture) if model_info.task in ("embed", "token-embed") else None
    model_class = task.auto_class if encoder is None else getattr(transformers, encoder)
    try:
        model, loading = model_class.from_pretrained(
            model_info.folder,
            local_files_only=True,
            trust_remote_code=setup.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the names and the shapes
            dtype=torch.float32,
        )
    except Exception as error:  # of the checks of a config, of a class of the model, or of a file of weights
        raise ModelError(
            f"{model_info.requested}: transformers cannot load {model_info.folder} (config.json and its weights): "
            f"{one_line(error)}"
        ) from error
    _check_shapes(model_info, loading["mismatched_keys"])
    _check_weights(model_info, () if has_own_code(model) else task.unused_modules, loading["missing_keys"])
    return model


class TextTower(torch.nn.Module):
    """The part for texts of a model of texts and images. Its features take the place of the hidden state of a single
    token, so that they are pooled as those."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        for name in ("vision_model", "visual_projection"):
            if hasattr(model, name):
                setattr(model, name, torch.nn.Identity())  # its memory is not needed
        self._takes_token_types = "token_type_ids" in inspect.signature(model.get_text_features).parameters

    def set_attn_implementation(self, name: str) -> None:
        """As in transformers."""
        self.model.set_attn_implementation(name)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """The features as ``last_hidden_state``, items × 1 × width."""
        types = {"token_type_ids": token_type_ids} if self._takes_token_types else {}
        features = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **types)
        return BaseModelOutput(last_hidden_state=features.pooler_output[:, None])


def _random_model(model_info: ModelInfo, task: type[Task]) -> torch.nn.Module:
    shape = SHAPES[model_info.shape or ""]
    config = BertConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        pad_token_id=model_info.pad_id,
        num_labels=len(model_info.labels) or 2,  # 2 for question answering: start and end of an answer
    )
    torch.manual_seed(SEED)
    model: torch.nn.Module = task.auto_class.from_config(config)
    return model


def has_own_code(model: object) -> bool:
    """Whether the class of the model comes from the model's folder, and not from transformers."""
    return not type(model).__module__.startswith("transformers.")


def _check_weights(model_info: ModelInfo, unused_modules: Sequence[str], missing: Sequence[str]) -> None:
    """transformers initializes missing weights at random and continues; the results would be meaningless."""
    unused = tuple(f"{name}." for name in unused_modules)
    needed = sorted(key for key in missing if not key.startswith(unused))
    if needed:
        raise ModelError(
            f"{model_info.requested}: the model files lack {len(needed)} of the tensors that {model_info.architecture} "
            f"needs for the task {model_info.task}; the first is {needed[0]}"
        )


def _check_shapes(model_info: ModelInfo, mismatched: Iterable[Sequence[Any]]) -> None:
    """transformers would initialize weights of another shape at random."""
    wrong = sorted((str(name), list(found), list(wanted)) for name, found, wanted in mismatched)
    if wrong:
        name, found, wanted = wrong[0]
        raise ModelError(
            f"{model_info.requested}: config.json and the weights in {model_info.folder} contradict each other: the "
            f"tensor {name} has the shape {found}, but config.json requires {wanted}"
            + (f"; {len(wrong) - 1} more tensors differ" if len(wrong) > 1 else "")
        )


def copy_from_file_cache(model: torch.nn.Module) -> None:
    """Copy weights that are views of the memory-mapped file into memory of this process.

    Pages of the file cache stay on the NUMA node of the process that read them first, whatever the memory policy of
    this process is.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def convert_model(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Convert the model to ``dtype``, except the frequencies of rotary positions, which ``from_pretrained`` keeps in
    fp32 too: their rounding error would grow with the position."""
    frequencies = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        if name.endswith("inv_freq")
    ]
    model.to(dtype)
    for module, name, buffer in frequencies:  # the conversion has replaced the buffers
        setattr(module, name, buffer)


def attention_windows(model: torch.nn.Module) -> list[int]:
    """The sizes of the attention windows in the configs of the model and its parts, in tokens."""
    return sorted({size for config in _configs(model) for name in WINDOW_ATTRIBUTES for size in _sizes(config, name)})


def _configs(model: torch.nn.Module) -> Iterator[Any]:
    seen = {id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None}
    return iter(seen.values())


def _sizes(config: object, name: str) -> list[int]:
    value = getattr(config, name, None)
    values = value if isinstance(value, list | tuple) else [value]
    return [size for size in values if isinstance(size, int) and not isinstance(size, bool) and size > 0]
