"""Reads which build of torch is installed, and whether the worker's libraries are there at all, without importing them.

The front must neither import torch nor start workers that cannot: a missing library is reported before anything is
started, and a build for GPUs is named, since pip installs one by default on x86-64 and it is several times as large.
What is computed with torch must not enter; that is the worker's.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.errors import MachineError

CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of CPU builds
WORKER_PACKAGES = ("torch", "transformers")

# The fields of torch/version.py that name an accelerator (tools/generate_torch_version.py in PyTorch's sources).
ACCELERATORS = {"cuda": "CUDA", "hip": "ROCm", "rocm": "ROCm", "xpu": "XPU"}
_FIELD = re.compile(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*'([^'\n]*)'", re.MULTILINE)
# The local part of a version, where version.py does not say it: 2.13.0+cu130, 2.13.0+rocm7.1, 2.13.0+xpu.
_LOCAL = re.compile(r"\+(cu|rocm|xpu)([\d.]*)")
_LOCAL_NAMES = {"cu": "CUDA", "rocm": "ROCm", "xpu": "XPU"}


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The installed torch: its version with the local part (``2.13.0+cpu``), and what it is built for (``CUDA 13.0``).

    ``accelerator`` is None for a CPU build.
    """

    version: str
    accelerator: str | None

    @property
    def release(self) -> str:
        """The version without the local part, as pip takes it: ``2.13.0``."""
        return self.version.partition("+")[0]


def read_torch_build() -> TorchBuild | None:
    """The build of torch in this environment; None where it is not installed."""
    folder = _package_folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    fields = dict(_FIELD.findall(text))
    return parse_torch_build(fields, fields.get("__version__") or _distribution_version("torch"))


def parse_torch_build(fields: dict[str, str], full_version: str) -> TorchBuild:
    """The build that the fields of ``torch/version.py`` describe; the local part of the version where they do not."""
    for field, name in ACCELERATORS.items():
        if fields.get(field):
            return TorchBuild(full_version, f"{name} {fields[field]}")
    local = _LOCAL.search(full_version)
    return TorchBuild(full_version, _LOCAL_NAMES[local[1]] if local else None)


def gpu_build_warning(build: TorchBuild | None) -> str | None:
    """One sentence for a build of torch that has an accelerator's libraries; None for a CPU build."""
    if build is None or build.accelerator is None:
        return None
    return (
        f"torch {build.version} is a build for {build.accelerator}. It works, but only its CPU part is used, and it is "
        f"gigabytes larger than the CPU build: pip install --force-reinstall --no-deps torch=={build.release} "
        f"--index-url {CPU_INDEX}"
    )


def require_worker_packages(packages: Sequence[str] = WORKER_PACKAGES) -> None:
    """Raise ``MachineError`` when the worker could not import what it needs in this environment."""
    missing = [name for name in packages if _package_folder(name) is None]
    if missing:
        # Another index holds torch alone, so each package gets a command of its own.
        commands = [
            f"pip install {name}" + (f" --index-url {CPU_INDEX}" if name == "torch" else "") for name in missing
        ]
        raise MachineError(
            f"the workers need {' and '.join(missing)}, which {sys.executable} does not have; {'; '.join(commands)}"
        )


def _package_folder(name: str) -> Path | None:
    """The folder of a top-level package, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _distribution_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
