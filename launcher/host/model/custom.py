"""The metadata of a custom task, from its class.

Separate from ``resolve`` because nothing about such a model is read from files.
"""

from __future__ import annotations

from launcher.core.protocol.model_info import ModelInfo
from launcher.custom_task import load_custom_task
from launcher.errors import UsageError
from launcher.host.model.folder import lower_limit
from launcher.options import ModelOptions
from launcher.options.option import ClassPath


def custom_model_info(place: ClassPath, options: ModelOptions) -> ModelInfo:
    """The metadata of the class at ``place``. Raises ``UsageError`` if it cannot be served."""
    task = load_custom_task(place)
    if options.backend != "eager":
        raise UsageError(f"--backend {options.backend}: a custom class runs only with --backend eager; omit the option")
    weight_bytes = getattr(task, "weight_bytes", 0)
    if not isinstance(weight_bytes, int) or weight_bytes < 0:
        raise UsageError(
            f"--task {place}: the class attribute weight_bytes is {weight_bytes!r}; it must be a number of bytes"
        )
    notes: tuple[str, ...] = ()
    if not weight_bytes:
        notes = (f"{place} has no weight_bytes, so the plan does not account for the memory of its weights",)
    return ModelInfo(
        name=str(getattr(task, "name", place.partition(":")[2])),
        requested=options.model,
        task="custom",
        folder=options.model,
        shape=None,
        architecture=str(place),
        hidden_size=0,
        layers=0,
        vocab_size=0,
        max_length=lower_limit(task.max_size, options),
        pad_id=0,
        pooling="mean",
        normalize=False,
        labels=(),
        weight_bytes=weight_bytes,
        custom_class=str(place),
        notes=notes,
    )
