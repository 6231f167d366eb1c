from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from launcher.worker.optimizations import prepack as prepack_module
from launcher.worker.optimizations.fused_linear import FusedLinear
from launcher.worker.optimizations.prepack import PrepackedLinear, prepack, prepack_if_faster

TOKENS, WIDTH = 24, 32


class SelfAttention(nn.Module):
    """Three layers with the same input, one for their output, and one that is called twice."""

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


def results_before_and_after(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Results before and after prepacking, for another input than the weights were prepacked with."""
    torch.manual_seed(0)
    model.to(dtype)
    states, other = torch.randn(TOKENS, WIDTH, dtype=dtype), torch.randn(7, WIDTH, dtype=dtype)
    expected = model(other)
    prepack(model, TOKENS, lambda: model(states))
    return expected, model(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_with_the_same_input_are_fused_and_keep_their_results(dtype: torch.dtype) -> None:
    model = SelfAttention()
    expected, result = results_before_and_after(model, dtype)

    fused = {module for module in model.modules() if isinstance(module, FusedLinear)}
    assert len(fused) == 1
    assert model.query.fused is model.key.fused is model.value.fused
    assert isinstance(model.out, PrepackedLinear)
    assert isinstance(model.again, PrepackedLinear)
    assert torch.allclose(result, expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_layers_with_the_same_input_are_not_fused_if_only_some_have_a_bias() -> None:
    model = SelfAttention(key_bias=False)
    expected, result = results_before_and_after(model, torch.float32)

    assert not any(isinstance(module, FusedLinear) for module in model.modules())
    assert torch.allclose(result, expected, atol=1e-5)


def test_a_fused_layer_releases_its_states_after_its_last_part_was_called() -> None:
    model = SelfAttention()
    results_before_and_after(model, torch.float32)

    assert model.query.fused._states is None
    assert not hasattr(model.query.fused, "_result")


def test_plain_weights_are_restored_if_the_results_differ() -> None:
    model = SelfAttention()
    states = torch.randn(TOKENS, WIDTH)

    assert prepack_if_faster(model, TOKENS, lambda: model(states), lambda: False) == "the results differ"
    assert all(type(model.get_submodule(name)) is nn.Linear for name in ("query", "key", "value", "out", "again"))


def test_a_dtype_that_onednn_refuses_leaves_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> PrepackedLinear:
        raise RuntimeError("bf16 path needs the cpu support avx512bw\nstack")

    monkeypatch.setattr(prepack_module, "PrepackedLinear", refuse)
    model, states = SelfAttention(), torch.randn(TOKENS, WIDTH)
    before = dict(model.named_modules())
    reason = prepack_if_faster(model, TOKENS, lambda: model(states), lambda: True)
    assert reason == "oneDNN refused (bf16 path needs the cpu support avx512bw)"
    assert dict(model.named_modules()) == before
