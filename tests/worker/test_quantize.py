from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.backends.eager import EagerBackend
from launcher.worker.interfaces import ItemBatch, ModelError
from launcher.worker.optimizations.quantize import QuantizedLinear, quantize
from launcher.worker.sample_inputs import check_items

TOKENS, WIDTH, OUTPUTS = 64, 128, 96


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def states_with_large_channels() -> Tensor:
    """As in an encoder: a few channels are fifty times larger than the rest."""
    torch.manual_seed(0)
    states = torch.randn(TOKENS, WIDTH)
    states[:, ::40] *= 50
    return states


class Block(nn.Module):
    """A linear layer, GELU, and another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(WIDTH, OUTPUTS), nn.Linear(OUTPUTS, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(states)))  # type: ignore[no-any-return]


def lowest_cosine_of(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first, second, dim=1).min())


def quantized_block(states: Tensor) -> tuple[Block, Tensor]:
    """The block in int8, and its results before."""
    model = Block()
    expected = model(states)
    assert quantize(model, lambda: model(states)) is None
    assert isinstance(model.first, QuantizedLinear)
    assert isinstance(model.second, QuantizedLinear)
    return model, expected


def test_results_stay_close_when_a_few_channels_are_large() -> None:
    states = states_with_large_channels()
    model, expected = quantized_block(states)

    assert lowest_cosine_of(expected, model(states)) > 0.999


def test_without_factors_large_channels_would_cost_the_others_accuracy() -> None:
    states = states_with_large_channels()
    coarse = (states / states.abs().amax(1, keepdim=True) * 127).round() * states.abs().amax(1, keepdim=True) / 127
    model, expected = quantized_block(states)

    assert lowest_cosine_of(expected, Block()(coarse)) < lowest_cosine_of(expected, model(states))


def test_the_result_of_a_token_does_not_depend_on_other_tokens() -> None:
    states = states_with_large_channels()
    model, _ = quantized_block(states)
    together = model(states)

    for row in range(0, TOKENS, 7):
        assert torch.equal(model(states[row : row + 1]), together[row : row + 1])


def test_states_outside_the_calibrated_range_are_handled() -> None:
    states = states_with_large_channels()
    model, _ = quantized_block(states)
    larger = 3 * states.flip(0)

    assert lowest_cosine_of(Block()(larger), model(larger)) > 0.998


@pytest.mark.parametrize("seen", [0.0, 1e-3])
def test_a_channel_near_zero_during_calibration_may_be_large_later(seen: float) -> None:
    states = torch.randn(TOKENS, WIDTH)
    quiet = states.clone()
    quiet[:, 3] *= seen
    model = Block()
    assert quantize(model, lambda: model(quiet)) is None

    assert lowest_cosine_of(Block()(states), model(states)) > 0.999


def test_the_activation_of_a_block_is_kept_if_its_layer_shares_its_input() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.block = nn.Linear(WIDTH, OUTPUTS), nn.Module()
            self.block.dense, self.block.intermediate_act_fn = nn.Linear(WIDTH, OUTPUTS), ACT2FN["gelu"]

        def forward(self, states: Tensor) -> Tensor:
            return self.before(states) + self.block.intermediate_act_fn(self.block.dense(states))  # type: ignore[no-any-return]

    states = torch.randn(TOKENS, WIDTH)
    model = Gated()
    expected = model(states)
    assert quantize(model, lambda: model(states)) is None

    assert lowest_cosine_of(expected, model(states)) > 0.999


def test_batches_of_rows_keep_their_shape() -> None:
    states = states_with_large_channels()
    model, _ = quantized_block(states)

    assert torch.equal(model(states.view(4, 16, WIDTH)).view(TOKENS, WIDTH), model(states))
    assert torch.isfinite(model(torch.zeros(1, WIDTH))).all()


def test_a_model_without_linear_layers_is_not_quantized() -> None:
    model = nn.LayerNorm(WIDTH)

    assert quantize(model, lambda: model(torch.randn(3, WIDTH))) == "the model has no linear layers"


def load(model_info: ModelInfo, dtype: str, **options: bool) -> tuple[EagerBackend, float | None, tuple[str, ...]]:
    backend = EagerBackend(Setup(model_info, dtype, "eager", (), **options))  # type: ignore[arg-type]
    loaded = backend.load(lambda stage, done, detail: None)
    return backend, loaded.accuracy, loaded.notes


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
def test_the_demo_model_in_int8_is_close_to_fp32_reports_its_accuracy_and_ignores_other_items(pack: bool) -> None:
    model_info = resolve(ModelOptions(model="demo"))
    exact, _, _ = load(model_info, "fp32", pack=pack)
    backend, accuracy, notes = load(model_info, "int8", pack=pack)
    items = check_items(model_info)

    alone = np.concatenate([backend.run(ItemBatch.of([item])).values for item in items])
    expected = np.concatenate([exact.run(ItemBatch.of([item])).values for item in items])
    together = backend.run(ItemBatch.of(items)).values
    assert accuracy is not None
    assert accuracy > 0.99
    assert np.sum(alone * expected, axis=1).min() > 0.99
    # Attention with a mask rounds differently, so a value between two quantization steps may take the other one.
    assert np.sum(alone * together, axis=1).min() > (0.9999 if pack else 0.999)
    assert [note for note in notes if note.startswith(f"low accuracy in int8: cosine {accuracy:.5f}")]
    assert not [note for note in notes if note.startswith("not traced")]


def test_meaningless_results_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        QuantizedLinear, "forward", lambda self, states: torch.randn(*states.shape[:-1], len(self._scales))
    )
    model_info = resolve(ModelOptions(model="random:tiny"))

    with pytest.raises(ModelError, match="cosine of only"):
        load(model_info, "int8")
