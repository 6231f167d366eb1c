"""Which prompt a call gets, as sentence-transformers chooses it."""

from __future__ import annotations

import msgspec
import pytest

from launcher.core.tasks.prompts import MAX_CHARACTERS, choose_prompt
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions

PLAIN = resolve(ModelOptions(model="random:tiny"))
PROMPTS = {"query": "find: ", "passage": "text: ", "none": ""}
PROMPTED = msgspec.structs.replace(PLAIN, prompts=PROMPTS, default_prompt="find: ")


@pytest.mark.parametrize(
    ("prompt", "name", "chosen"),
    [
        (None, None, "find: "),
        (None, "passage", "text: "),
        (None, "none", ""),
        ("own: ", None, "own: "),
        ("own: ", "passage", "own: "),  # as in the library
        ("own: ", "unknown", "own: "),
        ("", None, ""),
    ],
)
def test_the_prompt_comes_before_its_name_and_that_before_the_default(prompt, name, chosen) -> None:
    assert choose_prompt(PROMPTED, prompt, name) == chosen


def test_without_prompts_nothing_is_prepended() -> None:
    assert choose_prompt(PLAIN, None, None) == ""


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(
        UsageError, match=r"'document', which the model does not have; its prompts are 'none', 'passage'"
    ):
        choose_prompt(PROMPTED, None, "document")
    with pytest.raises(UsageError, match="it has no prompts"):
        choose_prompt(PLAIN, None, "query")


def test_a_long_prompt_is_an_error_because_every_input_gets_a_copy() -> None:
    assert choose_prompt(PLAIN, "x" * MAX_CHARACTERS, None)
    with pytest.raises(UsageError, match="has 10001 characters; the limit is 10000"):
        choose_prompt(PLAIN, "x" * (MAX_CHARACTERS + 1), None)
