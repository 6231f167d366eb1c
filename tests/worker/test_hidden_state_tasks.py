"""Sparse vectors in parts, the heads of BGE-M3, and results with a varying number of rows, alone and in batches.

In this process, because a worker for each model would take minutes. ``tests/models`` compares with the libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Run, Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import SparsePooling
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import BatchOutput, ItemBatch
from launcher.worker.loop import BatchError, check_output
from launcher.worker.numerics import comparable
from tests.models import families, vocabularies

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

LENGTHS = (60, 40, 17, 17, 1)


def save_model(folder: Path, auto: str) -> Any:
    """Save a small BERT of this class with random weights, and return it."""
    import transformers

    families.save_transformer(folder, auto=auto, family="bert", tokenizer=vocabularies.bert)
    return getattr(transformers, auto).from_pretrained(folder).eval()


def ids_of() -> np.ndarray:
    return np.arange(sum(LENGTHS), dtype=np.int32) * 31 % 190


def loaded(model_info: ModelInfo, *, pack: bool) -> Any:
    from launcher.worker.backends.eager import EagerBackend

    backend = EagerBackend(Setup(model_info, "fp32", "eager", (), pack=pack))
    found = backend.load(lambda stage, done, detail: None)
    assert found.packed == pack
    return backend


def check(backend: Any, model_info: ModelInfo, ids: np.ndarray, expected: np.ndarray) -> None:
    """The results of all items together, and of each alone, are the expected ones, in comparable form."""
    items = np.split(ids, np.cumsum(LENGTHS)[:-1])
    output = backend.run(ItemBatch(ids, LENGTHS))
    check_output(output, Run(1, LENGTHS), model_info)
    alone = [comparable(backend.run(ItemBatch(item, [len(item)])), model_info) for item in items]
    for found in (comparable(output, model_info), np.concatenate(alone)):
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("pack", [True, False])
def test_long_items_are_computed_in_parts(tmp_path: Path, pack: bool, pooling: Literal["max", "sum"]) -> None:
    model = save_model(tmp_path, "AutoModelForMaskedLM")
    found = resolve(ModelOptions(model=str(tmp_path), task="sparse-embed"))
    model_info = msgspec.structs.replace(found, sparse=SparsePooling(pooling=pooling))
    expected = []
    with torch.no_grad():
        for item in np.split(ids_of().astype(np.int64), np.cumsum(LENGTHS)[:-1]):
            weights = torch.log1p(torch.relu(model(torch.from_numpy(item[None])).logits[0]))
            expected.append(weights.amax(0) if pooling == "max" else weights.sum(0))
    backend = loaded(model_info, pack=pack)
    for most in (16, 20, 1000):
        backend.layout._task._most = most
        check(backend, model_info, ids_of(), torch.stack(expected).numpy())


@pytest.mark.parametrize(
    ("lengths", "most", "groups"),
    [
        ((5, 3, 2), 10, [(0, 3)]),
        ((5, 3, 2), 9, [(0, 2), (2, 3)]),
        ((50, 3, 2), 9, [(0, 1), (1, 3)]),
        ((50, 40), 9, [(0, 1), (1, 2)]),
        ((1,), 9, [(0, 1)]),
    ],
)
def test_items_are_grouped_by_their_tokens(lengths: Any, most: int, groups: list[tuple[int, int]]) -> None:
    from launcher.worker.tasks.hidden_states import token_groups

    assert list(token_groups(lengths, most)) == groups


def save_bge_m3(folder: Path) -> Any:
    """An encoder with the two heads of BGE-M3, which are returned with it."""
    encoder = save_model(folder, "AutoModel")
    heads = {}
    torch.manual_seed(3)
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", families.HIDDEN)):
        heads[name] = torch.nn.Linear(families.HIDDEN, outputs)
        with torch.no_grad():
            heads[name].bias.add_(2)  # so that most weights are positive
        torch.save(heads[name].state_dict(), folder / name)
    return encoder, heads


@pytest.mark.parametrize("pack", [True, False])
def test_the_sparse_head_of_bge_m3_weights_the_tokens_of_a_text(tmp_path: Path, pack: bool) -> None:
    """As in FlagEmbedding: the highest weight of each token id, without special tokens."""
    encoder, heads = save_bge_m3(tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="sparse-embed"))
    assert model_info.sparse is not None
    excluded = set(model_info.sparse.excluded_ids)
    assert len(excluded) == 3  # padding, unknown and CLS; BERT has no EOS
    ids = ids_of() % 40
    expected = np.zeros((len(LENGTHS), model_info.vocab_size), dtype=np.float32)
    for row, item in zip(expected, np.split(ids, np.cumsum(LENGTHS)[:-1]), strict=True):
        with torch.no_grad():
            hidden = encoder(torch.from_numpy(item[None].astype(np.int64))).last_hidden_state[0]
            weights = torch.relu(heads["sparse_linear.pt"](hidden))[:, 0].tolist()
        for token, weight in zip(item.tolist(), weights, strict=True):
            if token not in excluded:
                row[token] = max(row[token], weight)
    assert expected[0].any()
    assert (np.isin(ids, list(excluded))).any()
    check(loaded(model_info, pack=pack), model_info, ids, expected)


@pytest.mark.parametrize("pack", [True, False])
def test_the_colbert_head_of_bge_m3_projects_and_normalizes_each_token(tmp_path: Path, pack: bool) -> None:
    encoder, heads = save_bge_m3(tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="token-embed"))
    assert model_info.token_vectors is not None
    assert model_info.token_vectors.skip_first
    expected = []
    for item in np.split(ids_of(), np.cumsum(LENGTHS)[:-1]):
        with torch.no_grad():
            hidden = encoder(torch.from_numpy(item[None].astype(np.int64))).last_hidden_state[0]
            expected.append(torch.nn.functional.normalize(heads["colbert_linear.pt"](hidden), dim=-1).numpy())
    check(loaded(model_info, pack=pack), model_info, ids_of(), np.concatenate(expected))


def test_a_head_that_needs_more_than_hidden_states_is_refused(tmp_path: Path) -> None:
    from launcher.worker.interfaces import ModelError
    from launcher.worker.tasks.hidden_states import TokenHead

    model = save_model(tmp_path, "AutoModelForMaskedLM")
    plain, encoder = model.forward, model.base_model

    def forward(input_ids: Any, **options: Any) -> Any:
        """Adds a value unless the encoder is replaced."""
        output = plain(input_ids=input_ids, **options)
        output.logits = output.logits + float(model.base_model is encoder)
        return output

    with torch.no_grad():
        TokenHead(model).check()
        model.forward = forward
        with pytest.raises(ModelError, match="the head of BertForMaskedLM depends on more"):
            TokenHead(model).check()


def test_a_head_in_a_file_must_be_a_linear_layer_of_the_right_size(tmp_path: Path) -> None:
    from launcher.worker.interfaces import ModelError
    from launcher.worker.tasks.linear_file import read_linear

    path = tmp_path / "head.pt"
    torch.save(torch.nn.Linear(8, 2).state_dict(), path)
    assert read_linear(path, 8, 2).out_features == 2
    for inputs, outputs in ((9, 2), (8, 1)):
        with pytest.raises(ModelError, match=r"has a weight of shape \(2, 8\)"):
            read_linear(path, inputs, outputs)
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="is not a saved linear layer"):
        read_linear(path, 8)


def test_the_loop_accepts_any_number_of_rows_that_is_stated(model_info: Any) -> None:
    sparse = model_info(task="sparse-embed", sparse=SparsePooling())
    run = Run(1, (3, 1))
    values = np.ones((4, 2), dtype=np.float32)
    check_output(BatchOutput(values, 4, (4, 0)), run, sparse)
    check_output(BatchOutput(values[:0], 4, (0, 0)), run, sparse)
    for rows in ((4,), (3, 0), (4, 0, 0), ()):
        with pytest.raises(BatchError, match="expected results of shape"):
            check_output(BatchOutput(values, 4, rows), run, sparse)
    values[3, 1] = np.nan
    with pytest.raises(BatchError, match="for 1 of 2 items, the first is item 0 with 3 tokens"):
        check_output(BatchOutput(values, 4, (4, 0)), run, sparse)


def test_rows_of_a_varying_number_are_compared_by_token(model_info: Any) -> None:
    sparse = model_info(task="sparse-embed", sparse=SparsePooling(), vocab_size=6)
    output = BatchOutput(np.array([[1, 0.5], [4, 2], [4, 3]], dtype=np.float32), 9, (2, 0, 1))
    assert comparable(output, sparse).tolist() == [[0, 0.5, 0, 0, 2, 0], [0] * 6, [0, 0, 0, 0, 3, 0]]


def test_items_of_equal_length_keep_their_numbers_of_rows() -> None:
    from launcher.worker.layouts.equal_lengths import EqualLengthLayout

    class Rows:
        """Each item has as many rows as its first id says."""

        def run(self, batch: ItemBatch) -> BatchOutput:
            firsts = [int(item[0]) for item in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]
            return BatchOutput(np.repeat(firsts, firsts)[:, None].astype(np.float32), len(batch.ids), firsts)

    layout = EqualLengthLayout(Rows())  # type: ignore[arg-type]
    output = layout.run(ItemBatch(np.array([2, 9, 9, 0, 9, 3, 9, 1], dtype=np.int32), (3, 2, 2, 1)))
    assert list(output.rows) == [2, 0, 3, 1]
    assert output.values[:, 0].tolist() == [2, 2, 3, 3, 3, 1]
