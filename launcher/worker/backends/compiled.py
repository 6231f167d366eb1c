"""The compile backend: the eager one with its model compiled by torch's inductor, weights frozen into the code.

Compiled once for all numbers of tokens, since a line of packed items has any. Takes some ten seconds at each start
(docs/decisions/0008); where it fails, or gives other results, the model is run as by the eager backend, and that is
said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from launcher.worker.backends.eager import EagerBackend

# Where the code of a model has to be cut into pieces, each may see a few kinds of shapes.
GRAPHS = 64


class CompiledBackend(EagerBackend):
    """See the head of this module."""

    def make_fast(self, run: Callable[[], object], proves: Callable[[], bool]) -> tuple[str, ...]:
        """See ``EagerBackend.make_fast``."""
        if self._setup.dtype == "int8":
            return (
                "not compiled: int8 products are oneDNN's, run as by the eager backend",
                *super().make_fast(run, proves),
            )
        try:
            self.layout.wrap(_compiled)
            run()
            if proves():
                return ("compiled",)
            reason = "it gave other results"
        except Exception as error:  # of a compiler and what it calls: anything
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        self.layout.wrap(None)
        return (f"not compiled, run as by the eager backend: {reason[:300]}", *super().make_fast(run, proves))


def _compiled(module: Any) -> Any:
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch._dynamo.config.recompile_limit = GRAPHS
    return torch.compile(module, dynamic=True)
