"""The ASCII fast path gives the same tokens as the tokenizer itself, and is used only if it does."""

from __future__ import annotations

import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase, Normalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from launcher.core.protocol.model_info import ModelInfo
from launcher.front.ascii_fast_path import Encoder

LETTERS = string.ascii_letters + string.digits + string.punctuation
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    "the",
    "##ing",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["the", "The", "THING", "[MASK]", "[mask]", "[CLS]", "<extra>", "<EXTRA>", "é", "\n", "\t", "中"]
        ),
        st.text(alphabet=LETTERS + " ", max_size=20),
        st.text(max_size=5),
    ),
    max_size=12,
).map(" ".join)


def made(folder: Path, normalizer: Normalizer | None, *added: AddedToken) -> Path:
    """The file of a WordPiece tokenizer."""
    tokenizer = Tokenizer(WordPiece({piece: id for id, piece in enumerate(dict.fromkeys(PIECES))}, unk_token="[UNK]"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.add_tokens(list(added))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


NORMALIZERS = {
    "uncased": BertNormalizer(),
    "cased": BertNormalizer(lowercase=False),
    "accents": BertNormalizer(lowercase=False, strip_accents=True),
}


@pytest.fixture(scope="module", params=list(NORMALIZERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizers") / request.param
    return made(place, NORMALIZERS[request.param], AddedToken("<extra>"), AddedToken("<Kept>", normalized=False))


def card_in(model_info: ModelInfo, folder: Path) -> ModelInfo:
    return msgspec.structs.replace(model_info, folder=str(folder), requested=str(folder))


@pytest.mark.parametrize("offsets", [False, True])
def test_tokens_and_offsets_equal_those_of_the_tokenizer_itself(
    model_info: ModelInfo, folder: Path, offsets: bool
) -> None:
    encoder = Encoder(card_in(model_info, folder), offsets=offsets)
    assert encoder._fast is not None
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @settings(max_examples=300, deadline=None)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=4))
    @example(texts=["<Kept> <kept> <extra> <Extra>", "The [MASK] [Mask]", "THE THING\nthe thing", "K the"])
    def check(texts: list[str]) -> None:
        found, expected = encoder.encode(texts), plain.encode_batch(texts)
        assert [e.ids for e in found] == [e.ids for e in expected]
        assert [e.special_tokens_mask for e in found] == [e.special_tokens_mask for e in expected]
        if offsets:
            assert [e.offsets for e in found] == [e.offsets for e in expected]

    check()


@pytest.mark.parametrize(
    ("normalizer", "added"),
    [
        (None, 0),
        (Lowercase(), 0),
        (BertNormalizer(clean_text=False), 0),
        (BertNormalizer(), 20),
    ],
)
def test_other_tokenizers_take_the_regular_path(
    model_info: ModelInfo, tmp_path: Path, normalizer: Normalizer | None, added: int
) -> None:
    folder = made(tmp_path / "other", normalizer, *(AddedToken(f"<{index}>") for index in range(added)))
    encoder = Encoder(card_in(model_info, folder), offsets=False)
    assert encoder._fast is None
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("The thing", "<3> the é"):
        assert encoder.encode([text])[0].ids == plain.encode(text).ids


@pytest.mark.parametrize("added", [AddedToken("Café"), AddedToken("two\nlines")])
def test_added_tokens_that_the_normalizer_changes_are_found(
    model_info: ModelInfo, tmp_path: Path, added: AddedToken
) -> None:
    folder = made(tmp_path / "added", BertNormalizer(), added)
    encoder = Encoder(card_in(model_info, folder), offsets=False)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "the cafe with two lines"
    assert encoder.encode([text])[0].ids == plain.encode(text).ids
    assert plain.token_to_id(added.content) in plain.encode(text).ids


def test_which_texts_take_the_fast_path(model_info: ModelInfo, tmp_path: Path) -> None:
    encoder = Encoder(
        card_in(model_info, made(tmp_path / "bert", BertNormalizer(), AddedToken("<extra>"))), offsets=False
    )
    assert encoder._plain("The Thing, 3 times!") == "the thing, 3 times!"
    assert encoder._plain("a" * 32_000) is not None
    for text in ("a" * 32_001, "café", "two\nlines", "a\x00b", "the [mask]", "an <EXTRA>"):
        assert encoder._plain(text) is None


def test_the_fast_path_is_disabled_if_its_results_differ(
    model_info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "bert", BertNormalizer())
    monkeypatch.setattr("launcher.front.ascii_fast_path.check_texts", lambda added: ["the [MASK]", "é"])
    assert Encoder(card_in(model_info, folder), offsets=False)._fast is None
    monkeypatch.undo()
    monkeypatch.setattr(Encoder, "_plain", lambda self, text: text)  # ignores the case
    assert Encoder(card_in(model_info, folder), offsets=False)._fast is None
