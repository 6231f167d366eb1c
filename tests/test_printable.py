"""What a terminal must not receive as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.printable import printable


def test_controls_are_written_as_in_a_python_string() -> None:
    assert printable("a\nb\x1b[2J\x7f\x85\u202e\u2028\udcff") == "a\\nb\\x1b[2J\\x7f\\x85\\u202e\\u2028\\udcff"


def test_text_in_any_language_stays() -> None:
    text = "naïve – 日本語 · עברית \\ 'quoted'"
    assert printable(text) == text


def test_characters_to_keep_stay() -> None:
    assert printable("a\tb\nc", keep="\t") == "a\tb\\nc"


@given(st.text())
def test_the_result_is_printable(text: str) -> None:
    assert printable(text).isprintable()
