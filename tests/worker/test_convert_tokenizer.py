"""A model without tokenizer.json: it is converted once from the vocabulary and gives the same ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions

pytestmark = pytest.mark.slow


@pytest.fixture
def slow_folder(tmp_path: Path, demo_folder: Path, monkeypatch) -> Path:
    """The demo model without its fast tokenizer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "slow"
    shutil.copytree(demo_folder, folder, ignore=shutil.ignore_patterns("tokenizer.json", "*.md"))
    return folder


def model_info_of(folder: Path) -> ModelInfo:
    return resolve(ModelOptions(model=str(folder)))


def test_it_is_converted_once_and_gives_the_same_ids(slow_folder, demo_folder, tmp_path) -> None:
    model_info = model_info_of(slow_folder)
    made = Path(model_info.tokenizer_path)
    assert made.is_relative_to(tmp_path / "cache/launcher/tokenizers")
    assert any("no tokenizer.json" in note for note in model_info.notes)
    first_made = made.stat().st_mtime_ns

    text = "Naïve café – it's 12 °C, isn't it? 日本語"
    original, converted = Tokenizer.from_file(str(demo_folder / "tokenizer.json")), Tokenizer.from_file(str(made))
    original.no_padding()
    assert converted.encode(text).ids == original.encode(text).ids

    assert model_info_of(slow_folder) == model_info
    assert made.stat().st_mtime_ns == first_made


def test_it_is_converted_again_when_the_vocabulary_changes(slow_folder) -> None:
    before = model_info_of(slow_folder).tokenizer_path
    vocabulary = slow_folder / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace("[unused7]", "brandnewword"), encoding="utf-8")

    after = model_info_of(slow_folder).tokenizer_path

    assert after != before
    assert len(Tokenizer.from_file(after).encode("brandnewword").ids) == 3


def test_an_invalid_vocabulary_is_reported(slow_folder) -> None:
    (slow_folder / "vocab.txt").unlink()
    (slow_folder / "spiece.model").write_bytes(b"nothing of the kind")

    with pytest.raises(UsageError, match=r"its other files could not be converted: \w+"):
        model_info_of(slow_folder)
