"""The items that results are checked with at load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.core.protocol.model_info import ModelInfo
from launcher.worker.sample_inputs import MAX_MULTIPLICATIONS, check_items
from tests.worker.letter_tokenizer import save_letter_tokenizer

SMALL, LARGE = 4 * 10**6, 4 * 10**10  # bytes of weights


@pytest.fixture
def of_letters(tmp_path: Path, model_info: Callable[..., ModelInfo]) -> Callable[..., ModelInfo]:
    """Makes a ``ModelInfo`` with a tokenizer that gives one token per letter."""
    save_letter_tokenizer(tmp_path, 200)

    def make(**changes: object) -> ModelInfo:
        return model_info(**{"folder": str(tmp_path), "vocab_size": 200, "max_length": 8192, **changes})

    return make


@pytest.mark.parametrize(
    ("windows", "weight_bytes", "longest"),
    [
        ((), SMALL, 192),
        ((64,), SMALL, 192),
        ((512, 1024), SMALL, 1056),
        ((512, 4096), SMALL, 4128),
        ((4096,), LARGE, 192),  # such an item would take too long
    ],
)
def test_one_item_is_longer_than_the_attention_windows(of_letters, windows, weight_bytes, longest) -> None:
    lengths = [len(item) for item in check_items(of_letters(weight_bytes=weight_bytes), windows)]

    assert lengths[0] == longest
    assert max(lengths[1:]) <= 200  # one letter is one token
    assert lengths[0] * weight_bytes // 4 <= max(MAX_MULTIPLICATIONS, 192 * weight_bytes // 4)


def test_no_item_is_longer_than_the_model_takes(of_letters) -> None:
    assert max(len(item) for item in check_items(of_letters(max_length=20), (512,))) == 20


def test_one_item_has_the_padding_id_and_the_special_tokens_between_its_tokens(of_letters, tmp_path) -> None:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("[CLS]", special=True), AddedToken("[SEP]", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    items = [item.ids.tolist() for item in check_items(of_letters(pad_id=0))]

    (special,) = [ids for ids in items if 0 in ids]
    assert {2, 3} <= set(special)
    assert special.count(0) == 2
    assert special[0] not in (0, 2, 3)
