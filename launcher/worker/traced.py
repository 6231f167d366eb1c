"""An encoder recorded once and then run without Python: for a short text that saves about a quarter of the time.

What the recording does for another number of tokens than it was made with is for the caller to prove: code that takes
a number of tokens for a constant would be wrong for all others.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


class _Positional(torch.nn.Module):
    """Named inputs in a fixed order, the hidden states alone out."""

    def __init__(self, encoder: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self._encoder, self._names = encoder, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Hidden states, 1 × tokens × hidden size."""
        hidden: Tensor = self._encoder(**dict(zip(self._names, inputs, strict=True)))[0]
        return hidden


class TracedEncoder:
    """Called as the encoder, with the inputs that it was recorded with, by name."""

    def __init__(self, encoder: Any, example: dict[str, Tensor]) -> None:
        self._names = tuple(example)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of numbers taken for constants; the caller proves that none matters
            module, inputs = _Positional(encoder, self._names).eval(), tuple(example.values())
            recorded = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            self._recorded = torch.jit.freeze(recorded)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor]:
        """The hidden states, as the first of one."""
        try:
            return (self._recorded(*[inputs[name] for name in self._names]),)
        except RuntimeError as error:  # says where in the recording before it says what
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
