"""``tag``: entities and tokens as transformers returns them, with their positions in the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import Engine, Entity
from launcher.errors import UsageError
from tests.worker.taggers import save_tagger

pytestmark = pytest.mark.slow

TEXTS = [
    "Angela Merkel met the board of Siemens in Munich, and then flew to Paris with Emmanuel Macron.",
    "Ça va, Zoë? 🙂 In Köln.",
    "  white   space \n\t around ",
    "東京 is Tokyo",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launcher.host.model.resolve import demo_folder

    folder = tmp_path_factory.mktemp("tagger")
    save_tagger(folder, demo_folder())
    return folder


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), instances=1, dtype="fp32", reserve_cores=0) as engine:
        yield engine


def test_entities_are_those_of_transformers_own_pipeline(tagger: Engine, folder: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    joined: Any = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    total = 0
    for text, found in zip(TEXTS, tagger.tag(TEXTS), strict=True):
        expected = joined(text)
        total += len(expected)
        assert [(e.label, e.start, e.end) for e in found] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        assert [e.score for e in found] == pytest.approx([float(e["score"]) for e in expected], abs=1e-4)
        assert all(isinstance(e, Entity) and text[e.start : e.end] == e.text for e in found)
    assert total > 10


def test_one_text_a_stream_and_a_list_give_the_same(tagger: Engine) -> None:
    every = tagger.tag(TEXTS)
    assert_same([tagger.tag(text) for text in TEXTS], every)
    assert_same(list(tagger.tag_stream(iter(TEXTS))), every)


def assert_same(found: list[list[Entity]], expected: list[list[Entity]]) -> None:
    """Scores may differ in the last digits: the sums in a matrix product depend on the size of the batch."""
    for some, others in zip(found, expected, strict=True):
        assert [(e.label, e.text, e.start, e.end) for e in some] == [(e.label, e.text, e.start, e.end) for e in others]
        assert [e.score for e in some] == pytest.approx([e.score for e in others], rel=1e-5)


def test_without_aggregation_every_token_has_a_label(tagger: Engine) -> None:
    (tokens,) = tagger.tag(["Tokyo is large"], aggregation="none")
    assert [token.text for token in tokens] == ["Tokyo", "is", "large"]
    with pytest.raises(UsageError, match="must be one of 'none', 'simple', 'first', 'average', 'max', 'bioes'"):
        tagger.tag("text", aggregation="last")  # type: ignore[call-overload]


def test_a_tagger_has_no_vectors(tagger: Engine) -> None:
    with pytest.raises(UsageError, match=r"'tag', not 'embed'; use tag\(\)"):
        tagger.embed("text")
