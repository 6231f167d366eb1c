"""The compile backend: the eager backend with its model compiled by torch.compile (Inductor), with frozen weights.

Compiled once with a dynamic shape, since the number of tokens of a packed batch varies. Adds some ten seconds to each
start (docs/decisions/0008). If compilation fails or changes the results, the model runs as in the eager backend, and a
note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from launcher.core.protocol.load_proof import Optimization
from launcher.worker.backends.eager import EagerBackend

# Graph breaks split a model into parts; each part may be compiled for this many kinds of shapes.
RECOMPILE_LIMIT = 64
REASON_CHARACTERS = 300


class CompileBackend(EagerBackend):
    """See the head of this module."""

    def optimize(self, run: Callable[[], object], unchanged: Callable[[], bool]) -> tuple[str, ...]:
        """See ``EagerBackend.optimize``."""
        if self._setup.dtype == "int8":
            reason = "int8 linear layers are computed by oneDNN"
        else:
            try:
                self.layout.wrap_module(_compile)
                run()
                if unchanged():
                    self.kept.append("compiled")
                    return ("compiled",)
                reason = "the results differ"
            except Exception as error:  # the compiler and the tools it calls may raise anything
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self.layout.wrap_module(None)
        return (f"not compiled, running eagerly: {reason[:REASON_CHARACTERS]}", *super().optimize(run, unchanged))

    def repeat_optimizations(self, kept: Sequence[Optimization], run: Callable[[], object]) -> None:
        """See ``EagerBackend.repeat_optimizations``."""
        if "compiled" in kept:
            self.layout.wrap_module(_compile)
            run()
        else:
            super().repeat_optimizations(kept, run)


def _compile(module: Any) -> Any:
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return torch.compile(module, dynamic=True)
