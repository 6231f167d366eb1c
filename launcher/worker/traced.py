"""An encoder recorded once and then run without Python: for a short text that saves about a quarter of the time.

What the recording does for another number of tokens than it was made with is for the caller to prove: code that takes
a number of tokens for a constant would be wrong for all others.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from launcher.worker.fused_linear import Product


class _Positional(torch.nn.Module):
    """Named inputs in a fixed order, then the weights of prepacked products; the hidden states alone out."""

    def __init__(self, encoder: Any, names: tuple[str, ...], products: list[Product]) -> None:
        super().__init__()
        self._encoder, self._names, self._products = encoder, names, products

    def forward(self, *inputs: Tensor) -> Tensor:
        """Hidden states, 1 × tokens × hidden size."""
        named = len(self._names)
        for product, weight in zip(self._products, inputs[named:], strict=True):
            product.weight_input = weight
        hidden: Tensor = self._encoder(**dict(zip(self._names, inputs[:named], strict=True)))[0]
        return hidden


class TracedEncoder:
    """Called as the encoder, with the inputs that it was recorded with, by name."""

    def __init__(self, encoder: Any, example: dict[str, Tensor]) -> None:
        self._names = tuple(example)
        products = [module for module in encoder.modules() if isinstance(module, Product)]
        self._weights = [product.packed for product in products]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of numbers taken for constants; the caller proves that none matters
            module = _Positional(encoder, self._names, products).eval()
            inputs = (*example.values(), *self._weights)
            recorded = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            self._recorded = torch.jit.freeze(recorded)
        for product in products:
            del product.weight_input  # of the recording, not of the module

    def __call__(self, **inputs: Tensor) -> tuple[Tensor]:
        """The hidden states, as the first of one."""
        try:
            return (self._recorded(*[inputs[name] for name in self._names], *self._weights),)
        except RuntimeError as error:  # says where in the recording before it says what
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
