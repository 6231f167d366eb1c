"""Reads which torch is installed, and whether the packages of the worker are installed, without importing them.

The front must not import torch: that takes seconds. A missing package is reported before anything is started. The
meaning of a build is decided in ``core.diagnosis.torch_build``.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.core.diagnosis.torch_build import CPU_INDEX, TorchBuild, parse_torch_build
from launcher.errors import MachineError

WORKER_PACKAGES = ("torch", "transformers")

_FIELD = re.compile(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*'([^'\n]*)'", re.MULTILINE)


def read_torch_build() -> TorchBuild | None:
    """The build of torch in this environment; None if it is not installed."""
    folder = _package_folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    fields = dict(_FIELD.findall(text))
    return parse_torch_build(fields, fields.get("__version__") or _distribution_version("torch"))


def read_gpu_packages() -> tuple[str, ...]:
    """The distributions that only a CUDA build of torch needs, as pip names them."""
    folder = _package_folder("torch")
    if folder is None:
        return ()
    found = (path.name.partition("-")[0] for path in folder.parent.glob("nvidia_*.dist-info"))
    return tuple(sorted(name.replace("_", "-") for name in found))


def require_worker_packages(packages: Sequence[str] = WORKER_PACKAGES) -> None:
    """Raise ``MachineError`` if packages that the worker needs are missing in this environment."""
    missing = [name for name in packages if _package_folder(name) is None]
    if missing:
        # The other index has only torch, so each package gets its own command.
        commands = [
            f"pip install {name}" + (f" --index-url {CPU_INDEX}" if name == "torch" else "") for name in missing
        ]
        raise MachineError(
            f"the workers need {' and '.join(missing)}, which {sys.executable} does not have; run {'; '.join(commands)}"
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
