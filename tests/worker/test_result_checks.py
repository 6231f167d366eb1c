"""The checks of results at load, with a backend that shares nothing with the eager one.

Its model is a few plain torch modules. Variants of it are wrong in the ways that the checks must find.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from launcher.core.protocol.frames import encode, to_front_decoder
from launcher.core.protocol.messages import Done, Ready, Run, Setup, Stop, Unusable
from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.backends.create_backend import BACKENDS
from launcher.worker.interfaces import (
    BatchOutput,
    BatchRunner,
    Item,
    ItemBatch,
    LoadedModel,
    ModelError,
    PackingUnsupportedError,
    ReportProgress,
)
from launcher.worker.loop import work
from launcher.worker.result_checks import (
    HIGH_COSINE,
    Reference,
    check_accuracy,
    results_unchanged,
    select_runner,
)
from launcher.worker.sample_inputs import check_items, synthetic_batch

WIDTH = 16
MODEL_INFO = msgspec.structs.replace(
    resolve(ModelOptions(model="random:tiny")), hidden_size=WIDTH, max_length=128, normalize=False
)


class TinyModel(nn.Module):
    """Attention without weights over embeddings, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(MODEL_INFO.vocab_size, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states, items × width × hidden size; ``mask`` is items × width, True for real tokens."""
        states = self.embedding(ids)
        scores = states @ states.transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        return self.linear(torch.softmax(scores, dim=2) @ states)  # type: ignore[no-any-return]


class TinyRunner:
    """Runs a batch by a function of its items, each int64, that returns one vector per item."""

    def __init__(self, compute: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self._compute = compute

    @torch.inference_mode()
    def run(self, batch: ItemBatch) -> BatchOutput:
        items = list(torch.from_numpy(batch.ids.astype(np.int64)).split(list(batch.lengths)))
        return BatchOutput(torch.stack(self._compute(items)).float().numpy(), len(batch.ids))


def packed(model: nn.Module) -> TinyRunner:
    """Attention within each item of the concatenated batch."""
    return TinyRunner(lambda items: [model(item[None])[0].mean(0) for item in items])


def leaking(model: nn.Module) -> TinyRunner:
    """Attention over the whole concatenated batch: results depend on the other items."""

    def compute(items: list[Tensor]) -> list[Tensor]:
        hidden = model(torch.cat(items)[None])[0]
        return [part.mean(0) for part in hidden.split([len(item) for item in items])]

    return TinyRunner(compute)


def padded(model: nn.Module, *, masked: bool = True) -> TinyRunner:
    """Items as rows of the longest item's width; unless ``masked``, padding takes part in attention."""

    def compute(items: list[Tensor]) -> list[Tensor]:
        rows = nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=MODEL_INFO.pad_id)
        mask = torch.arange(rows.shape[1])[None] < torch.tensor([[len(item)] for item in items])
        hidden = model(rows, mask if masked else None)
        return [hidden[row, : len(item)].mean(0) for row, item in enumerate(items)]

    return TinyRunner(compute)


def failing(items: list[Tensor]) -> list[Tensor]:
    raise IndexError("position 600 of 512")


def not_finite_if_alone(items: list[Tensor]) -> list[Tensor]:
    """Right results, except for a batch of one item."""
    factor = torch.nan if len(items) == 1 else 1.0
    return [TinyModel()(item[None])[0].mean(0) * factor for item in items]


def unsupported() -> Iterator[TinyRunner]:
    raise PackingUnsupportedError("the graph has no position ids")
    yield


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.one_by_one(padded(TinyModel()), MODEL_INFO, check_items(MODEL_INFO))


# --- layouts


def test_packed_results_that_match_those_of_single_items_are_accepted(reference) -> None:
    candidate = packed(TinyModel())
    selection = select_runner(reference, [candidate], lambda: padded(TinyModel()))

    assert selection.runner is candidate
    assert selection.not_packed is None
    assert selection.error < 1e-5


def test_the_first_packed_candidate_with_the_right_results_is_selected(reference) -> None:
    wrong, right = leaking(TinyModel()), packed(TinyModel())
    selection = select_runner(reference, [wrong, right], lambda: padded(TinyModel()))

    assert selection.runner is right
    assert selection.not_packed is None


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (lambda: [leaking(TinyModel())], "packed results differ from those of single items by 0."),
        (lambda: [TinyRunner(failing)], "the model fails on packed items (IndexError)"),
        (lambda: [TinyRunner(not_finite_if_alone)], "packed results differ from those of single items by nan"),
        (unsupported, "the graph has no position ids"),
        (list, "there is no packed variant"),
    ],
)
def test_a_backend_whose_packed_results_are_wrong_falls_back_to_padding(reference, candidates, reason) -> None:
    fallback = padded(TinyModel())
    selection = select_runner(reference, candidates(), lambda: fallback)

    assert selection.runner is fallback
    assert selection.not_packed is not None
    assert reason in selection.not_packed
    assert selection.error < 1e-5


def test_a_model_whose_padded_results_depend_on_padding_is_refused(reference) -> None:
    with pytest.raises(ModelError, match="depends on the padding in its batch"):
        select_runner(reference, [], lambda: padded(TinyModel(), masked=False))


# --- precision


def with_rounded_weights(steps: int) -> TinyModel:
    """The model with its weights rounded to multiples of 1/steps."""
    model = TinyModel()
    for parameter in model.parameters():
        parameter.data = (parameter.data * steps).round() / steps
    return model


def test_the_accuracy_of_bf16_is_measured_against_fp32(reference) -> None:
    accuracy = check_accuracy(reference, packed(TinyModel().to(torch.bfloat16)), "bf16")

    assert HIGH_COSINE < accuracy.cosine < 1
    assert accuracy.notes == ()


def test_an_accuracy_below_the_high_bound_is_reported(reference) -> None:
    accuracy = check_accuracy(reference, packed(with_rounded_weights(8)), "int8")

    assert 0.9 < accuracy.cosine < HIGH_COSINE
    (note,) = accuracy.notes
    assert note == f"low accuracy in int8: cosine {accuracy.cosine:.5f} with fp32; use --dtype fp32 for exact results"


def test_an_accuracy_below_the_bound_is_refused(reference) -> None:
    with pytest.raises(ModelError, match=r"results in int8 have a cosine of only 0\.\d+ with fp32; at least 0.9 is"):
        check_accuracy(reference, packed(with_rounded_weights(3)), "int8")


def test_results_that_are_not_finite_are_refused(reference) -> None:
    model = TinyModel()
    model.linear.bias.data[3] = torch.nan

    with pytest.raises(ModelError, match="results in bf16 are zero or not finite"):
        check_accuracy(reference, packed(model), "bf16")


# --- optimizations


def test_an_optimization_that_keeps_the_results_is_accepted(reference) -> None:
    assert results_unchanged(reference, packed(TinyModel()), "fp32")


@pytest.mark.parametrize(("dtype", "accepted"), [("fp32", False), ("bf16", True)])
def test_an_optimization_may_round_as_the_dtype_does(reference, dtype, accepted) -> None:
    assert results_unchanged(reference, packed(with_rounded_weights(100)), dtype) is accepted


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tokens", [range(2, 40), range(130, 10_000)])
def test_an_optimization_that_is_wrong_for_some_batch_sizes_is_found(reference, tokens, dtype) -> None:
    """As a graph is in which the number of tokens became a constant."""
    right, wrong = packed(TinyModel()), leaking(with_rounded_weights(3))

    class Optimized:
        def run(self, batch: ItemBatch) -> BatchOutput:
            return (wrong if len(batch.ids) in tokens else right).run(batch)

    assert not results_unchanged(reference, Optimized(), dtype)


# --- a backend of its own, served by the worker's loop


class TinyBackend:
    """What a backend needs: runners, a reference, and the checks. ``pack`` makes its packed runner."""

    def __init__(self, setup: Setup, pack: Callable[[nn.Module], BatchRunner]) -> None:
        self._setup, self._pack = setup, pack
        self._runner: BatchRunner

    def load(self, report: ReportProgress) -> LoadedModel:
        info, model = self._setup.model_info, TinyModel()
        reference = Reference.one_by_one(padded(model), info, check_items(info))
        selection = select_runner(reference, [self._pack(model)], lambda: padded(model))
        self._runner = selection.runner
        if self._setup.dtype == "fp32":
            accuracy, notes = None, ()
        else:
            model.load_state_dict(with_rounded_weights(3).state_dict())
            checked = check_accuracy(reference, self, self._setup.dtype)
            accuracy, notes = checked.cosine, checked.notes
        report("check", 1.0, "checked")
        return LoadedModel("none", 1, accuracy, notes, packed=selection.not_packed is None)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        return synthetic_batch(lengths, self._setup.model_info)

    def run(self, batch: ItemBatch) -> BatchOutput:
        return self._runner.run(batch)


ITEMS = [[101, 2023, 2003, 102], [7, 8, 9], [101, 102]]


def serve(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[nn.Module], BatchRunner], dtype: str = "fp32"
) -> tuple[int, list[tuple[msgspec.Struct, bytes]]]:
    """The exit status of a worker with this backend, and its messages for one batch of ``ITEMS``."""
    monkeypatch.setitem(BACKENDS, "eager", lambda setup: TinyBackend(setup, pack))
    ours, theirs = socket.socketpair()
    setup = Setup(MODEL_INFO, dtype, "eager", ((2, 8),))  # type: ignore[arg-type]
    body = np.concatenate(ITEMS).astype(np.int32).tobytes()
    run = Run(1, tuple(len(item) for item in ITEMS))
    ours.sendall(b"".join([*encode(setup), *encode(run, body), *encode(Stop())]))
    status = work(theirs, 0, 1)
    theirs.close()
    received = b"".join(iter(lambda: ours.recv(1 << 16), b""))
    ours.close()
    messages = [m for m in to_front_decoder().feed(received) if isinstance(m[0], Ready | Unusable | Done)]
    return status, messages


@pytest.mark.parametrize(("pack", "is_packed"), [(packed, True), (leaking, False)])
def test_another_backend_is_checked_and_served_like_the_eager_one(monkeypatch, pack, is_packed) -> None:
    status, ((ready, _), (done, body)) = serve(monkeypatch, pack)

    assert status == 0
    assert isinstance(ready, Ready)
    assert (ready.packed, ready.width, ready.accuracy) == (is_packed, WIDTH, None)
    assert isinstance(done, Done)
    values = np.frombuffer(body, dtype=np.float32).reshape(len(ITEMS), WIDTH)
    with torch.inference_mode():
        expected = [TinyModel()(torch.tensor([item]))[0].mean(0).numpy() for item in ITEMS]
    np.testing.assert_allclose(values, np.stack(expected), atol=1e-5)


def test_another_backend_whose_accuracy_is_too_low_is_not_served(monkeypatch) -> None:
    status, ((unusable, _),) = serve(monkeypatch, packed, "int8")

    assert status == 4
    assert isinstance(unusable, Unusable)
    assert "at least 0.9 is required" in unusable.reason


def test_the_reference_takes_the_facts_of_any_model(model_info: Callable[..., ModelInfo]) -> None:
    """Token classifiers have a row per token, which each batch must be compared with."""
    tagger = model_info(task="tag", labels=("O", "X"))
    items = [Item(np.arange(length, dtype=np.int32)) for length in (5, 3, 2)]

    class Rows:
        def run(self, batch: ItemBatch) -> BatchOutput:
            ids = batch.ids
            return BatchOutput(np.stack([ids, ids + 1], axis=1).astype(np.float32), len(ids))

    class Shifted(Rows):
        """Gives the first token of every item after the first one the result of the token before it."""

        def run(self, batch: ItemBatch) -> BatchOutput:
            values = super().run(batch).values.copy()
            for start in np.cumsum(batch.lengths)[:-1]:
                values[start] = values[start - 1]
            return BatchOutput(values, len(batch.ids))

    reference = Reference.one_by_one(Rows(), tagger, items)
    assert reference.results.shape == (10, 2)
    assert select_runner(reference, [Rows()], Rows).not_packed is None
    assert select_runner(reference, [Shifted()], Rows).not_packed is not None
