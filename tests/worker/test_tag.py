"""Token classifiers: scores of each token, packed and padded, against plain transformers, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.protocol.messages import Done, Run, Setup
from launcher.core.protocol.model_info import ModelInfo
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.worker.backends.fake import fake_result
from launcher.worker.batches import pad
from launcher.worker.interfaces import BatchOutput, ItemBatch
from launcher.worker.loop import BatchError, check_output
from launcher.worker.numerics import changed_labels, lowest_cosine, rows_of
from launcher.worker.tasks.tag import Tag, token_scores
from tests.worker.taggers import LABELS, save_tagger

TEXTS = (
    "no",
    "A cat sat on the mat in Geneva.",
    "The committee will publish its findings on Thursday, after the figures have been checked a second time.",
    "Разрешите представиться: меня зовут Анна.",
    "It rained. " * 20,
    "It rained. " * 150,
    "🙂🙂🙂",
    "naïve café, 12 °C",
)


@settings(deadline=None)  # the first call of an operator is slow
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_rows_of_padding_are_removed_and_the_others_keep_their_order(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    batch = pad(ItemBatch(ids, lengths), pad_id=0)
    logits = torch.stack([batch.input_ids, torch.zeros_like(batch.input_ids)], dim=2).to(torch.bfloat16)

    scores = token_scores(logits, batch.mask)

    assert scores.dtype == torch.float32
    expected = torch.softmax(torch.stack([torch.tensor(ids), torch.zeros(len(ids))], 1).bfloat16().float(), dim=1)
    torch.testing.assert_close(scores, expected)


def items_of(*lengths: int) -> list[np.ndarray]:
    return [np.zeros(length, dtype=np.int32) for length in lengths]


def test_an_item_of_a_tagger_has_the_rows_of_its_tokens(model_info) -> None:
    items = items_of(3, 2, 1)
    assert rows_of(items, [0, 2], model_info()) == [0, 2]
    tagger = model_info(task="tag", labels=LABELS)
    assert list(rows_of(items, [0, 2], tagger)) == [0, 1, 2, 5]
    assert list(rows_of(items, [1, 1], tagger)) == [3, 4, 3, 4]


def test_results_of_a_tagger_are_compared_by_item_and_a_wrong_token_is_detected(model_info) -> None:
    tagger = model_info(task="tag", labels=LABELS)
    items = items_of(192, 8)
    rng = np.random.default_rng(0)
    first = rng.dirichlet(np.full(9, 0.05), 200).astype(np.float32)
    noisy = first + rng.normal(0, 0.005, first.shape).astype(np.float32)
    assert lowest_cosine(first, noisy, items, tagger) > 0.999
    wrong = first.copy()
    wrong[100] = np.roll(first[100], 1)
    assert lowest_cosine(first, wrong, items, tagger) < 0.999
    assert changed_labels(first, wrong) == 1
    noisy[199] = np.nan
    assert np.isnan(lowest_cosine(first, noisy, items, tagger))


def test_the_loop_accepts_one_row_per_token_and_no_other_shape(model_info) -> None:
    tagger = model_info(task="tag", labels=("O", "X"))
    run = Run(1, (3, 1))
    check_output(BatchOutput(np.zeros((4, 2), dtype=np.float32), 4), run, tagger)
    with pytest.raises(BatchError, match=r"expected results of shape \(4, 2\) from the model, got \(2, 2\)"):
        check_output(BatchOutput(np.zeros((2, 2), dtype=np.float32), 4), run, tagger)
    broken = np.zeros((4, 2), dtype=np.float32)
    broken[3, 1] = np.inf
    with pytest.raises(BatchError, match="1 of 2 items, the first is item 1 with 1 tokens"):
        check_output(BatchOutput(broken, 4), run, tagger)


def test_fake_scores_of_a_token_depend_on_its_item(model_info) -> None:
    tagger = model_info(task="tag", labels=LABELS)
    ids = np.array([2, 7, 7, 3], dtype=np.int32)
    scores = fake_result(ids, tagger)
    assert scores.shape == (4, 9)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores[1], scores[2])
    assert not np.allclose(fake_result(ids[:3], tagger)[0], scores[0])


def token_ids(model_info: ModelInfo) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(model_info.tokenizer_path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(model_info.max_length)
    return sorted((encoding.ids for encoding in tokenizer.encode_batch(list(TEXTS))), key=len, reverse=True)


def plain_scores(folder: Path, items: list[list[int]]) -> list[np.ndarray]:
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [torch.softmax(model(torch.tensor([item])).logits[0], dim=1).numpy() for item in items]


def served_scores(worker: Any, items: list[list[int]]) -> list[np.ndarray]:
    worker.run(1, items)
    message, body = worker.expect(Done)
    rows = np.frombuffer(body, dtype=np.float32).reshape(-1, message.width)
    return np.split(rows, np.cumsum([len(item) for item in items])[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-4), ("bf16", 0.08)])
def test_a_tagger_matches_transformers_for_single_items_and_in_a_batch(
    start, tmp_path, demo_folder, dtype, most, pack
) -> None:
    save_tagger(tmp_path, demo_folder)
    model_info = resolve(ModelOptions(model=str(tmp_path)))
    assert (model_info.task, model_info.labels, model_info.rows) == ("tag", LABELS, "token")
    worker = start()
    worker.send(Setup(model_info, dtype, "eager", ((2, 16),), pack=pack))
    ready = worker.ready()
    assert (ready.width, ready.packed) == (9, pack)
    assert (ready.accuracy is None) == (dtype == "fp32")
    assert ready.accuracy is None or 0.999 < ready.accuracy < 1

    items = token_ids(model_info)
    plain = plain_scores(tmp_path, items)
    together = served_scores(worker, items)
    alone = [served_scores(worker, [item])[0] for item in items]
    for expected, one, other in zip(plain, together, alone, strict=True):
        for found in (one, other):
            np.testing.assert_allclose(found, expected, atol=most)
            sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 2 * most
            assert (found.argmax(1) == expected.argmax(1))[sure].all()
    assert worker.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["albert", "distilbert", "electra", "modernbert", "roberta", "deberta-v2"])
def test_heads_of_other_kinds_give_the_same_scores_when_packed(kind, tmp_path) -> None:
    """In this process. The last kind cannot be packed."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForTokenClassification

    from launcher.worker.backends.eager import EagerBackend

    sizes: dict[str, Any] = {"vocab_size": 200, "max_position_embeddings": 130, "num_labels": 5, "hidden_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "embedding_size": 64}
    sizes |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if kind == "distilbert":
        sizes = {"vocab_size": 200, "max_position_embeddings": 130, "num_labels": 5, "dim": 64, "n_layers": 2}
        sizes |= {"n_heads": 4, "hidden_dim": 128}
    if kind == "modernbert":
        sizes |= {"pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(tmp_path)
    letters = {"[UNK]": 4} | {letter: 5 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    letters |= {f"word {id}": id for id in range(31, 200)}  # never in a text, but most of the ids of the model
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')  # used as it is
    backend = EagerBackend(Setup(resolve(ModelOptions(model=str(tmp_path))), "fp32", "eager", ()))
    loaded = backend.load(lambda stage, done, detail: None)
    lengths = (120, 60, 17, 17, 1)
    ids = 5 + np.arange(sum(lengths), dtype=np.int32) * 31 % 190

    found = backend.run(ItemBatch(ids, lengths)).values

    plain = plain_scores(tmp_path, [item.tolist() for item in np.split(ids, np.cumsum(lengths)[:-1])])
    np.testing.assert_allclose(found, np.concatenate(plain), atol=1e-4)
    assert loaded.packed == (kind != "deberta-v2")


@pytest.mark.slow
def test_a_head_that_mixes_tokens_is_not_packed_and_a_note_says_so(tmp_path, demo_folder, monkeypatch) -> None:
    from transformers import BertForTokenClassification
    from transformers.modeling_outputs import TokenClassifierOutput

    from launcher.worker.backends.eager import EagerBackend

    class PreviousToken(BertForTokenClassification):
        """Adds the logits of the previous token to those of each token."""

        def forward(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
            logits = super().forward(input_ids=input_ids, attention_mask=attention_mask, **others).logits
            before = torch.nn.functional.pad(logits[:, :-1], (0, 0, 1, 0))
            return TokenClassifierOutput(logits=logits + before)

    save_tagger(tmp_path, demo_folder)
    monkeypatch.setattr(Tag, "auto_class", PreviousToken)
    model_info = resolve(ModelOptions(model=str(tmp_path)))
    backend = EagerBackend(Setup(model_info, "fp32", "eager", ()))

    loaded = backend.load(lambda stage, done, detail: None)

    assert not loaded.packed
    assert any("not packed: packed results differ from those of single items by" in note for note in loaded.notes)
    lengths = (9, 4, 4)
    ids = np.arange(1000, 1000 + sum(lengths), dtype=np.int32)
    together = backend.run(ItemBatch(ids, lengths)).values
    alone = [backend.run(ItemBatch(item, [len(item)])).values for item in np.split(ids, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


@pytest.mark.slow
def test_random_models_and_the_fake_backend_support_tagging(start) -> None:
    model_info = resolve(ModelOptions(model="random:tiny", task="tag"))
    for backend in ("eager", "fake"):
        worker = start()
        worker.send(Setup(model_info, "fp32", backend, ()))
        assert worker.ready().width == 9
        one, other = served_scores(worker, [[101, 2023, 3000, 102], [101, 102]])
        assert (one.shape, other.shape) == ((4, 9), (2, 9))
        np.testing.assert_allclose(one.sum(1), 1, rtol=1e-5)
        assert worker.stop() == 0


@pytest.mark.slow
def test_a_model_without_the_weights_of_its_head_is_refused(start, demo_folder) -> None:
    model_info = msgspec.structs.replace(resolve(ModelOptions()), task="tag", labels=LABELS)
    worker = start()
    worker.send(Setup(model_info, "fp32", "eager", ()))
    assert "the model files lack 2 of the tensors" in worker.unusable()


@pytest.mark.slow
def test_a_batch_of_long_items_is_returned_completely(start) -> None:
    model_info = resolve(ModelOptions(model="random:tiny", task="tag"))
    worker = start()
    worker.send(Setup(model_info, "fp32", "fake", ()))
    worker.ready()
    items = [[5 + i] * 512 for i in range(64)]
    found = served_scores(worker, items)
    assert sum(rows.nbytes for rows in found) == 64 * 512 * 9 * 4
    for item, rows in zip(items, found, strict=True):
        np.testing.assert_array_equal(rows, fake_result(np.array(item, dtype=np.int32), model_info))
