from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from launcher.worker.fused_linear import JoinedLinear
from launcher.worker.prepack import PrepackedLinear, lay_out, prepack

TOKENS, WIDTH = 24, 32


class Attends(nn.Module):
    """Three products of one input, one of what they give, and one that is called twice."""

    def __init__(self, *, key_bias: bool = True) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 24)
        self.key = nn.Linear(WIDTH, 16, bias=key_bias)
        self.out, self.again = nn.Linear(24, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        weights = torch.softmax(self.query(states) @ self.key(states).T, dim=1)
        hidden = self.out(weights @ self.value(states))
        return self.again(torch.tanh(self.again(hidden)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def prepacked(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Results before and after, for an input that the weights were not laid out with."""
    torch.manual_seed(0)
    model.to(dtype)
    states, other = torch.randn(TOKENS, WIDTH, dtype=dtype), torch.randn(7, WIDTH, dtype=dtype)
    expected = model(other)
    lay_out(model, TOKENS, lambda: model(states))
    return expected, model(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_one_input_are_joined_and_give_what_they_gave(dtype: torch.dtype) -> None:
    model = Attends()
    expected, result = prepacked(model, dtype)

    joined = {module for module in model.modules() if isinstance(module, JoinedLinear)}
    assert len(joined) == 1
    assert model.query.joined is model.key.joined is model.value.joined
    assert isinstance(model.out, PrepackedLinear)
    assert isinstance(model.again, PrepackedLinear)
    assert torch.allclose(result, expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_products_of_one_input_that_differ_in_having_a_bias_stay_apart() -> None:
    model = Attends(key_bias=False)
    expected, result = prepacked(model, torch.float32)

    assert not any(isinstance(module, JoinedLinear) for module in model.modules())
    assert torch.allclose(result, expected, atol=1e-5)


def test_a_joined_product_keeps_no_states_once_all_its_parts_have_asked() -> None:
    model = Attends()
    prepacked(model, torch.float32)

    assert model.query.joined._states is None
    assert not hasattr(model.query.joined, "_result")


def test_weights_stay_as_they_were_where_the_results_differ() -> None:
    model = Attends()
    states = torch.randn(TOKENS, WIDTH)

    assert prepack(model, TOKENS, lambda: model(states), lambda: False) == "they gave other results"
    assert all(type(model.get_submodule(name)) is nn.Linear for name in ("query", "key", "value", "out", "again"))
