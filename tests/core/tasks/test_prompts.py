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


@pytest.mark.parametrize("name", ["query", "document"])
def test_every_model_has_the_prompts_for_queries_and_documents_which_replace_the_default(name) -> None:
    default = msgspec.structs.replace(PLAIN, prompts={"other": "x: "}, default_prompt="x: ")

    assert choose_prompt(default, None, name) == ""


def test_without_prompts_nothing_is_prepended() -> None:
    assert choose_prompt(PLAIN, None, None) == ""


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(
        UsageError, match=r"'corpus'; the prompts of this model are 'document', 'none', 'passage', 'query'"
    ):
        choose_prompt(PROMPTED, None, "corpus")
    with pytest.raises(UsageError, match="the prompts of this model are 'document', 'query'"):
        choose_prompt(PLAIN, None, "passage")


def test_a_long_prompt_is_an_error_because_every_input_gets_a_copy() -> None:
    assert choose_prompt(PLAIN, "x" * MAX_CHARACTERS, None)
    with pytest.raises(UsageError, match="has 10001 characters; the limit is 10000"):
        choose_prompt(PLAIN, "x" * (MAX_CHARACTERS + 1), None)
