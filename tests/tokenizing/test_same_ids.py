"""The token ids of the front are those of transformers, for every kind of tokenizer and every text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from launcher.errors import UsageError
from launcher.front.ascii_fast_path import Encoder
from launcher.host.model.resolve import resolve
from launcher.host.model.tokenizer_files import TokenizerFacts, TokenizerRequest, locate
from launcher.options import ModelOptions
from tests.tokenizing.kinds import AS_THEY_ARE, KINDS, write_json

pytestmark = pytest.mark.slow

WORDS = [
    *("The", "the", "NAÏVE", "naïve", "quick", "don't", "12", "x" * 120, "https://a.b/c", "##ing", "▁", "Ġ", "İ", "ß"),
    *(
        "中文",
        "テキスト",
        "שלום",
        "e\u0301",
        "ﬁ",
        "Ａ",
        "👩\u200d👩\u200d👧",
        "\U0001f600",
        "\x00",
        "\u200b",
        "\u2028",
        "\ufeff",
    ),
]
SPACES = ["", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000"]


@dataclass(frozen=True)
class Kind:
    """A tokenizer of one kind: what the front uses, and what transformers builds."""

    name: str
    facts: TokenizerFacts
    library: Any


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp(request.param)
    config = KINDS[request.param](folder)
    write_json(folder / "config.json", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        facts = locate(folder, config, TokenizerRequest(), UsageError)
    return Kind(request.param, facts, AutoTokenizer.from_pretrained(str(folder)))


def texts_of(library: Any) -> st.SearchStrategy[str]:
    added = list(library.get_added_vocab())
    pieces = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from([*added[:8], *added[-8:], *(token.upper() for token in added[:8])] or ["a"]),
        st.text(max_size=8),
        st.text(alphabet=st.characters(max_codepoint=127), max_size=8),
    )
    return st.lists(st.tuples(st.sampled_from(SPACES), pieces), max_size=10).map(
        lambda parts: "".join(space + piece for space, piece in parts)
    )


def test_the_ids_of_a_text_are_those_of_transformers(kind: Kind) -> None:
    model_info = resolve(ModelOptions(), download=False)
    encoder = Encoder(msgspec.structs.replace(model_info, tokenizer_file=str(kind.facts.path)), offsets=True)

    @settings(max_examples=150, deadline=None)
    @given(texts=st.lists(texts_of(kind.library), min_size=1, max_size=3))
    def check(texts: list[str]) -> None:
        found = encoder.encode(texts)
        expected = kind.library(texts, return_offsets_mapping=True, verbose=False)
        assert [encoding.ids for encoding in found] == expected["input_ids"]
        assert [encoding.offsets for encoding in found] == expected["offset_mapping"]

    check()


def test_the_ids_of_a_pair_are_those_of_transformers(kind: Kind) -> None:
    front = Tokenizer.from_file(str(kind.facts.path))
    front.no_truncation()
    front.no_padding()
    texts = texts_of(kind.library).filter(bool)

    @settings(max_examples=50, deadline=None)
    @given(first=texts, second=texts)
    def check(first: str, second: str) -> None:
        found = front.encode(first, second)
        expected = kind.library(first, second, return_token_type_ids=True, verbose=False)
        assert (found.ids, found.type_ids) == (expected["input_ids"], expected["token_type_ids"])

    check()


def test_the_facts_about_a_tokenizer_are_those_of_transformers(kind: Kind) -> None:
    limit = kind.library.model_max_length

    assert (kind.facts.converted == "") == (kind.name in AS_THEY_ARE)
    assert kind.facts.pad_id == kind.library.pad_token_id
    assert kind.facts.max_length == (int(limit) if limit < 10**20 else None)
    assert kind.facts.largest_id == max(kind.library.get_vocab().values())
    assert kind.facts.segment_ids == ("token_type_ids" in kind.library.model_input_names)
