"""An encoder traced once and then run as a TorchScript graph, without Python: a short text takes about a quarter less
time.

The caller must check the results for other numbers of tokens than the graph was traced with: model code may turn the
number of tokens into a constant, which would be wrong for all others.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from launcher.worker.optimizations.fused_linear import OneDNNLinear


class _PositionalEncoder(torch.nn.Module):
    """Takes the named inputs in a fixed order, then the prepacked weights; returns only the hidden states."""

    def __init__(self, encoder: Any, names: tuple[str, ...], linears: list[OneDNNLinear]) -> None:
        super().__init__()
        self._encoder, self._names, self._linears = encoder, names, linears

    def forward(self, *inputs: Tensor) -> Tensor:
        """Hidden states, 1 × tokens × hidden size."""
        named = len(self._names)
        for linear, weight in zip(self._linears, inputs[named:], strict=True):
            linear.weight_input = weight
        hidden: Tensor = self._encoder(**dict(zip(self._names, inputs[:named], strict=True)))[0]
        return hidden


class TracedEncoder:
    """Called like the encoder, with the same named inputs as the ``example`` it was traced with."""

    def __init__(self, encoder: Any, example: dict[str, Tensor]) -> None:
        self._names = tuple(example)
        linears = [module for module in encoder.modules() if isinstance(module, OneDNNLinear)]
        self._weights = [linear.prepacked for linear in linears]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about values that become constants; the caller checks the results
            module = _PositionalEncoder(encoder, self._names, linears).eval()
            inputs = (*example.values(), *self._weights)
            traced = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            self._graph = torch.jit.freeze(traced)
        for linear in linears:
            del linear.weight_input  # a value of the graph, not of the module

    def __call__(self, **inputs: Tensor) -> tuple[Tensor]:
        """The hidden states, as the first element of a tuple."""
        try:
            return (self._graph(*[inputs[name] for name in self._names], *self._weights),)
        except RuntimeError as error:  # the message starts with a stack trace of the graph and ends with the reason
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
