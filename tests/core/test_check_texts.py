"""The texts on which tokenizers are compared cover what tokenizers differ in, and every added token."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.check_texts import check_pairs, check_texts

TEXTS = check_texts(())
CHARACTERS = set("".join(TEXTS))


@pytest.mark.parametrize(
    "category", ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Nd", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "So"]
)
def test_the_texts_have_characters_of_each_category(category: str) -> None:
    assert any(unicodedata.category(character) == category for character in CHARACTERS)


@pytest.mark.parametrize(
    "part", ["\x00", "👩\u200d👩\u200d👧\u200d👦", "中", "カ", "ｶ", "ＦＵ", "ע", "cafe\u0301", "   "]
)
def test_the_texts_have_what_tokenizers_are_known_to_differ_in(part: str) -> None:
    assert any(part in text for text in TEXTS)


def test_there_are_words_above_the_limit_of_wordpiece_and_texts_of_white_space_and_of_nothing() -> None:
    assert any(len(word) > 100 for text in TEXTS for word in text.split())
    assert any(text and not text.strip() for text in TEXTS)
    assert "" in TEXTS


@given(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=40))
def test_each_added_token_occurs_between_other_characters_with_and_without_spaces(added: list[str]) -> None:
    texts = check_texts(added)

    joined, spaced = "".join(added), " a ".join(added)
    assert not added or (joined in texts and spaced in texts)
    for token in (*added[:12], *added[-12:]):
        assert {token, f"a{token}b", f"A {token} b."} <= set(texts)


def test_a_large_number_of_added_tokens_is_tried_together() -> None:
    added = [f"<{number}>" for number in range(3000)]

    texts = check_texts(added)

    assert len(texts) < len(TEXTS) + 200
    assert all(any(f"{token} a " in text or text.endswith(token) for text in texts) for token in added)


def test_no_text_of_a_pair_is_empty() -> None:
    pairs = check_pairs(["[MASK]"])

    assert all(first and second for first, second in pairs)
    assert len({second for _, second in pairs}) > 20
