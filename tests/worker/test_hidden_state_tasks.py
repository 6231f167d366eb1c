"""Sparse vectors, token vectors and filled masks against the libraries, alone and in batches, packed and padded.

In this process, because a worker for each model would take minutes. The models are small and random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from launcher.core.protocol.messages import Run, Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.core.protocol.task_settings import MAX_TOP_K, SparsePooling
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.interfaces import BatchOutput, ItemBatch
from launcher.worker.loop import BatchError, check_output
from launcher.worker.numerics import comparable

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

VOCABULARY, MASK = 200, 4
LENGTHS = (120, 60, 17, 17, 1)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_model(kind: str, folder: Path, auto_class: str = "AutoModelForMaskedLM") -> Any:
    """Save a small model of this kind with random weights, and return it."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 130, "hidden_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "embedding_size": 64}
    sizes |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if kind == "distilbert":
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 130, "dim": 64, "n_layers": 2}
        sizes |= {"n_heads": 4, "hidden_dim": 128}
    if kind == "modernbert":
        sizes |= {"pad_token_id": 0}
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(transformers.AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    words = {name: id for id, name in enumerate(SPECIALS)}
    words |= {letter: 5 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(settings))
    return model


def ids_of(masked: tuple[int, ...] = ()) -> np.ndarray:
    ids = 5 + np.arange(sum(LENGTHS), dtype=np.int32) * 31 % 190
    ids[list(masked)] = MASK
    return ids


def loaded(model_info: ModelInfo, *, pack: bool, packable: bool = True) -> Any:
    from launcher.worker.backends.eager import EagerBackend

    backend = EagerBackend(Setup(model_info, "fp32", "eager", (), pack=pack))
    found = backend.load(lambda stage, done, detail: None)
    assert found.packed == (pack and packable)
    return backend


def check(backend: Any, model_info: ModelInfo, ids: np.ndarray, expected: np.ndarray) -> None:
    """The results of all items together, and of each alone, are the expected ones, in comparable form."""
    items = np.split(ids, np.cumsum(LENGTHS)[:-1])
    output = backend.run(ItemBatch(ids, LENGTHS))
    check_output(output, Run(1, LENGTHS), model_info)
    alone = [comparable(backend.run(ItemBatch(item, [len(item)])), model_info) for item in items]
    for found in (comparable(output, model_info), np.concatenate(alone)):
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def logits_of(model: Any, ids: np.ndarray) -> list[Any]:
    with torch.no_grad():
        items = np.split(ids.astype(np.int64), np.cumsum(LENGTHS)[:-1])
        return [model(torch.from_numpy(item[None])).logits for item in items]


KINDS = ["bert", "albert", "distilbert", "electra", "modernbert", "roberta", "deberta-v2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_language_model_makes_the_sparse_vectors_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    model = save_model(kind, tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="sparse-embed"))
    assert (model_info.rows, model_info.result_width) == ("varying", 2)
    ids = ids_of()
    logits = logits_of(model, ids)
    backend = loaded(model_info, pack=True, packable=kind != "deberta-v2")
    for pooling, activation in (("max", "relu"), ("sum", "relu"), ("max", "log1p_relu")):
        pool = SpladePooling(pooling_strategy=pooling, activation_function=activation).eval()
        features = [{"token_embeddings": one.clone(), "attention_mask": torch.ones(one.shape[:2])} for one in logits]
        expected = torch.cat([pool(feature)["sentence_embedding"] for feature in features]).numpy()
        backend.layout._task._pooling = SparsePooling(pooling=pooling, activation=activation)
        check(backend, model_info, ids, expected)
    backend.layout._task._most = 16  # items longer than what is computed at once
    check(backend, model_info, ids, expected)


@pytest.mark.parametrize("pack", [True, False])
def test_the_number_of_weights_is_limited_to_the_highest(tmp_path: Path, pack: bool) -> None:
    from sentence_transformers.util import select_max_active_dims

    save_model("bert", tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="sparse-embed"))
    every = loaded(model_info, pack=pack).run(ItemBatch(ids_of(), LENGTHS))
    limited = msgspec.structs.replace(model_info, sparse=SparsePooling(max_active=10))
    assert min(every.rows) > 10
    expected = select_max_active_dims(torch.from_numpy(comparable(every, model_info)), 10).numpy()
    check(loaded(limited, pack=pack), limited, ids_of(), expected)


def save_bge_m3(folder: Path) -> Any:
    """An encoder with the two heads of BGE-M3, which are returned with it."""
    encoder = save_model("xlm-roberta", folder, "AutoModel")
    heads = {}
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", 64)):
        heads[name] = torch.nn.Linear(64, outputs)
        torch.save(heads[name].state_dict(), folder / name)
    return encoder, heads


@pytest.mark.parametrize("pack", [True, False])
def test_the_sparse_head_of_bge_m3_weights_the_tokens_of_a_text(tmp_path: Path, pack: bool) -> None:
    """As in FlagEmbedding: the highest weight of each token id, without special tokens."""
    encoder, heads = save_bge_m3(tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path), task="sparse-embed"))
    assert model_info.sparse is not None
    assert set(model_info.sparse.excluded_ids) == {0, 1, 2}  # padding, unknown and CLS; there is no EOS here
    ids = ids_of((3, 130)) % 40
    expected = np.zeros((len(LENGTHS), VOCABULARY), dtype=np.float32)
    for row, item in zip(expected, np.split(ids, np.cumsum(LENGTHS)[:-1]), strict=True):
        with torch.no_grad():
            hidden = encoder(torch.from_numpy(item[None].astype(np.int64))).last_hidden_state[0]
            weights = torch.relu(heads["sparse_linear.pt"](hidden))[:, 0].tolist()
        for token, weight in zip(item.tolist(), weights, strict=True):
            if token not in (0, 1, 2):
                row[token] = max(row[token], weight)
    assert expected[0].any()
    assert (np.isin(ids, [0, 1, 2])).any()
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


@pytest.mark.parametrize("kind", KINDS)
def test_mask_tokens_are_filled_with_the_most_probable_tokens(kind: str, tmp_path: Path) -> None:
    model = save_model(kind, tmp_path)
    model_info = resolve(ModelOptions(model=str(tmp_path)))
    assert model_info.task == "fill-mask"
    assert model_info.masks is not None
    assert model_info.masks.mask_id == MASK
    masked = (3, 7, 119, 150, 200)  # three in the first item, one in the second, one in the fourth
    ids = ids_of(masked)
    backend = loaded(model_info, pack=True, packable=kind != "deberta-v2")
    output = backend.run(ItemBatch(ids, LENGTHS))
    assert list(output.rows) == [3 * MAX_TOP_K, MAX_TOP_K, 0, MAX_TOP_K, 0]
    check_output(output, Run(1, LENGTHS), model_info)
    probabilities = torch.cat([torch.softmax(logits[0], dim=1) for logits in logits_of(model, ids)]).numpy()
    starts = np.cumsum([0, *LENGTHS])
    for place, rows in zip(masked, output.values.reshape(-1, MAX_TOP_K, 3), strict=True):
        item = int(np.searchsorted(starts, place, "right")) - 1
        assert (rows[:, 0] == place - starts[item]).all()
        best = np.sort(probabilities[place])[::-1][:MAX_TOP_K]
        np.testing.assert_allclose(rows[:, 2], best, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(probabilities[place][rows[:, 1].astype(int)], best, rtol=1e-4, atol=1e-9)


def test_a_head_that_needs_more_than_hidden_states_is_refused(tmp_path: Path) -> None:
    from launcher.worker.interfaces import ModelError
    from launcher.worker.tasks.hidden_states import TokenHead

    model = save_model("bert", tmp_path)
    with torch.no_grad():
        TokenHead(model).check()
        plain = model.forward

        def forward(input_ids: Any, **options: Any) -> Any:
            output = plain(input_ids=input_ids, **options)
            output.logits = output.logits + model.base_model.embeddings.word_embeddings(input_ids).sum() * (
                isinstance(model.base_model, type(model.bert))
            ) * float("encoder" in dict(model.base_model.named_children()))
            return output

        model.forward = forward
        with pytest.raises(ModelError, match="the head of BertForMaskedLM depends on more"):
            TokenHead(model).check()


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
