"""Loads a transformers model in fp32, from its files or with random weights.

Separate from the backends because those that convert a PyTorch model start here too. What is done with the model does
not belong here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BertConfig

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import SHAPES, ModelInfo
from launcher.worker.interfaces import ModelError
from launcher.worker.tasks.create_task import Task, task_class

SEED = 0  # of random weights: every instance must have the same ones


def load_model(setup: Setup) -> torch.nn.Module:
    """The model in fp32 and in evaluation mode. Raises ``ModelError`` if its files lack weights."""
    model_info = setup.model_info
    task = task_class(model_info)
    if model_info.shape is not None:
        model = _random_model(model_info, task)
    else:
        model, loading = task.auto_class.from_pretrained(
            model_info.folder,
            local_files_only=True,
            trust_remote_code=setup.trust_remote_code,
            output_loading_info=True,
            dtype=torch.float32,
        )
        _check_weights(model_info, task, loading["missing_keys"])
    for name in task.unused_modules:
        if hasattr(model, name):
            # Not None: some models call the module without a check.
            setattr(model, name, torch.nn.Identity())
    return model.eval()


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
        num_labels=max(1, len(model_info.labels)),
    )
    torch.manual_seed(SEED)
    model: torch.nn.Module = task.auto_class.from_config(config)
    return model


def _check_weights(model_info: ModelInfo, task: type[Task], missing: Sequence[str]) -> None:
    """transformers initializes missing weights at random and continues; the results would be meaningless."""
    unused = tuple(f"{name}." for name in task.unused_modules)
    needed = sorted(key for key in missing if not key.startswith(unused))
    if needed:
        raise ModelError(
            f"{model_info.asked}: the model files lack {len(needed)} of the tensors that {model_info.architecture} "
            f"needs for the task {model_info.task}; the first is {needed[0]}"
        )


def copy_from_file_cache(model: torch.nn.Module) -> None:
    """Copy weights that are views of the memory-mapped file into memory of this process.

    Pages of the file cache stay on the NUMA node of the process that read them first, whatever the memory policy of
    this process is.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
