"""Finds the weights of a model or of one of its modules, and reads the names and shapes in their headers.

Separate from ``folder`` because modules of sentence-transformers have weights of their own. No weights are read here,
and pickles are not opened.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.host.model.json_files import Json, ModelErrors, inventory, read_object

FLOAT_DTYPES = ("F", "BF")  # of a safetensors header: F64, F32, F16, BF16, F8_E4M3 …
MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit
GIT_LFS_POINTER = b"version https://git-lfs"

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"  # in the order of preference


# The first parts of the names of the tensors of heads, in the models of transformers.
HEADS = ("classifier.", "cls.", "decoder.bias", "discriminator_predictions.", "generator_predictions.", "lm_head.",
         "lm_predictions.", "mask_predictions.", "pre_classifier.", "predictions.", "qa_outputs.", "score.",
         "vocab_projector.", "vocab_transform.")  # fmt: skip


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in the header of a safetensors file; ``data_offsets`` are those of its first byte and after its last."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype.startswith(FLOAT_DTYPES)


def weight_bytes(folder: Path, config: Json, refuse: ModelErrors, *, unused: tuple[str, ...] = ()) -> int:
    """The size of all parameters in fp32, from the headers of the weight files. Tensors whose names start with one of
    ``unused`` are not loaded and not counted."""
    files = weight_files(folder, refuse)
    if not files:
        raise refuse(
            f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor shards of them; "
            f"{inventory(folder)}"
        )
    if files[0].suffix == ".safetensors":
        return sum(_safetensors_parameters(path, unused, refuse) for path in files) * FLOAT32_BYTES
    # Pickles are not opened here. Their size is that of the parameters in the saved dtype.
    saved = str(config.get("dtype", config.get("torch_dtype", "float32")))
    return sum(path.stat().st_size for path in files) * (2 if "16" in saved else 1)


def weight_files(folder: Path, refuse: ModelErrors) -> list[Path]:
    """The weight files, preferring safetensors; empty if there are none. Raises ``UsageError`` if shards are
    missing."""
    for name in (SAFETENSORS, PICKLE):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            parts = sorted(set(read_object(index, refuse).get("weight_map", {}).values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing or not parts:
                raise refuse(f"{index} lists {len(parts)} files, of which {len(missing)} are missing: {missing[:3]}")
            return [folder / part for part in parts]
    return []


def check_no_head(folder: Path, refuse: ModelErrors) -> None:
    """Raise ``UsageError`` if the weights have a head. For a config that does not name the class of the model: without
    this, the head would be dropped silently. Pickles are not opened."""
    for path in weight_files(folder, refuse):
        names = read_header(path, refuse) if path.suffix == ".safetensors" else ()
        head = next((name for name in sorted(names) if name.startswith(HEADS)), None)
        if head is not None:
            raise refuse(
                f"{folder / 'config.json'} has no architectures, but {path.name} has the weights of a head ({head}); "
                "name the class of the model in architectures, in a copy of the folder, or serve embeddings without "
                "the head with --task embed"
            )


def check_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]], refuse: ModelErrors) -> None:
    """Raise ``UsageError`` unless the weights of the module in ``folder`` have exactly these names and shapes.

    Those in a pickle are checked by the worker, which opens it."""
    path = folder / SAFETENSORS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            return
        raise refuse(f"{folder} has no weights: neither {SAFETENSORS} nor {PICKLE}; {inventory(folder)}")
    found = {name: tensor.shape for name, tensor in read_header(path, refuse).items()}
    if found != dict(shapes):
        name = min(key for key in {**found, **shapes} if found.get(key) != shapes.get(key))
        raise refuse(
            f"{path} has {_described(name, found)}, but the module's config requires {_described(name, shapes)}"
        )


def _described(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"the tensor {name} of shape {list(shapes[name])}" if name in shapes else f"no tensor {name}"


def _safetensors_parameters(path: Path, unused: tuple[str, ...], refuse: ModelErrors) -> int:
    """The number of floating-point values in a safetensors file."""
    tensors = read_header(path, refuse).items()
    return sum(prod(tensor.shape) for name, tensor in tensors if tensor.is_float and not name.startswith(unused))


def read_header(path: Path, refuse: ModelErrors) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, from its header (8 bytes of size, then JSON). Raises ``UsageError`` if
    it is not complete."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if GIT_LFS_POINTER.startswith(start) and start:
            raise refuse(f"{path} is a Git LFS pointer, not the weights; run git lfs pull in {path.parent}")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise refuse(f"{path} is not a complete safetensors file: it has {size} bytes, and a header of {length}")
        header = file.read(length)
    try:
        entries: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
        entries.pop("__metadata__", None)
        tensors = msgspec.convert(entries, dict[str, Tensor])
    except msgspec.MsgspecError as error:
        raise refuse(f"{path} has an invalid safetensors header: {error}") from error
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if 8 + length + end > size:
        raise refuse(f"{path} is truncated: {size} of {8 + length + end} bytes")
    return tensors
