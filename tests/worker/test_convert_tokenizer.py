"""A tokenizer that is not used as it is: it is converted once, by transformers, or refused with the reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from launcher.core.protocol.model_info import ModelInfo
from launcher.errors import UsageError
from launcher.host.model.resolve import resolve
from launcher.host.model.tokenizer_files import TokenizerFacts, TokenizerRequest, locate
from launcher.options import ModelOptions
from launcher.worker.compare_tokenizers import check_tokenizer
from launcher.worker.interfaces import ModelError

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


def refusal(folder: Path, **options: bool) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(ModelOptions(model=str(folder), **options))
    return str(caught.value)


def set_class(folder: Path, name: str, **settings: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **settings}))


def test_it_is_converted_in_each_start_without_a_cache_folder(slow_folder, demo_folder, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no-folder-can-be-made-here")

    made = Tokenizer.from_file(model_info_of(slow_folder).tokenizer_path)

    original = Tokenizer.from_file(str(demo_folder / "tokenizer.json"))
    original.no_padding()
    assert made.encode("Naïve café").ids == original.encode("Naïve café").ids


def test_an_invalid_vocabulary_is_reported(slow_folder) -> None:
    (slow_folder / "vocab.txt").unlink()
    (slow_folder / "tokenizer_config.json").unlink()
    config = json.loads((slow_folder / "config.json").read_text())
    (slow_folder / "config.json").write_text(json.dumps({**config, "model_type": "albert"}))
    (slow_folder / "spiece.model").write_bytes(b"nothing of the kind")

    assert "cannot be used as transformers builds it: " in refusal(slow_folder)


def test_a_class_that_reads_other_files_is_refused(slow_folder) -> None:
    set_class(slow_folder, "RobertaTokenizer")

    message = refusal(slow_folder)

    assert "RobertaTokenizer reads vocab.json and merges.txt, and the folder has neither" in message


@pytest.mark.parametrize("name", ["CanineTokenizer", "BertJapaneseTokenizer"])
def test_a_tokenizer_that_is_written_in_python_is_refused(slow_folder, name) -> None:
    set_class(slow_folder, name, word_tokenizer_type="basic")

    assert f"{name} is written in Python and has no fast version" in refusal(slow_folder)


PYTHON_TOKENIZER = """
from transformers.tokenization_python import PreTrainedTokenizer

class Words(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "vocab.txt"}

    def __init__(self, vocab_file=None, **kwargs):
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return 30522

    def get_vocab(self):
        return {}

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return len(token)
"""
UPPER_CASE = """
from transformers import BertTokenizer

class Upper(BertTokenizer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.backend_tokenizer.normalizer = None
"""


@pytest.fixture
def modules_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules_cache")
def test_the_models_own_tokenizer_in_python_is_refused(slow_folder) -> None:
    (slow_folder / "words.py").write_text(PYTHON_TOKENIZER)
    set_class(slow_folder, "Words", auto_map={"AutoTokenizer": ["words.Words", None]})

    assert "Words is written in Python and has no fast version" in refusal(slow_folder, trust_remote_code=True)


@pytest.mark.usefixtures("modules_cache")
def test_the_models_own_fast_tokenizer_needs_trust(slow_folder, demo_folder) -> None:
    shutil.copy(demo_folder / "tokenizer.json", slow_folder)
    (slow_folder / "upper.py").write_text(UPPER_CASE)
    set_class(slow_folder, "Upper", auto_map={"AutoTokenizer": [None, "upper.Upper"]})

    def ids(trusted: bool) -> list[int]:
        model_info = resolve(ModelOptions(model=str(slow_folder), trust_remote_code=trusted))
        made: list[int] = Tokenizer.from_file(model_info.tokenizer_path).encode("Hello").ids[:3]
        return made

    # Without trust, transformers uses its own class for the model type, which lower-cases.
    assert (ids(True), ids(False)) == ([101, 100, 102], [101, 7592, 102])


def test_arguments_and_lower_casing_are_those_of_sentence_transformers(slow_folder, demo_folder) -> None:
    shutil.copy(demo_folder / "tokenizer.json", slow_folder)
    config = json.loads((slow_folder / "config.json").read_text())

    def facts(request: TokenizerRequest) -> TokenizerFacts:
        return locate(slow_folder, config, request, UsageError)

    def ids(made: TokenizerFacts) -> list[int]:
        tokenizer = Tokenizer.from_file(str(made.path))
        tokenizer.no_padding()
        encoded: list[int] = tokenizer.encode("Hello").ids
        return encoded

    cased = facts(TokenizerRequest({"do_lower_case": False, "model_max_length": 77}))
    lowered = facts(TokenizerRequest({"do_lower_case": False}, lower_case=True))
    assert (ids(cased), cased.max_length) == ([101, 100, 102], 77)
    assert (ids(lowered), lowered.max_length) == ([101, 7592, 102], 512)
    with pytest.raises(UsageError, match="an argument of the tokenizer sets truncation_side to 'left'"):
        facts(TokenizerRequest({"truncation_side": "left"}))


# --- the comparison in a worker


def test_a_worker_compares_a_tokenizer_once(tmp_path, demo_folder) -> None:
    marker = tmp_path / "cache" / "checked"
    demo = msgspec.structs.replace(model_info_of(demo_folder), tokenizer_check=str(marker))

    check_tokenizer(demo, trust_remote_code=False)

    assert "transformers 5." in marker.read_text()
    unreadable = msgspec.structs.replace(demo, tokenizer_file=str(tmp_path / "nothing"))
    check_tokenizer(unreadable, trust_remote_code=False)


def test_a_worker_compares_a_tokenizer_again_with_other_packages(tmp_path, demo_folder) -> None:
    marker = tmp_path / "checked"
    marker.write_text("transformers 5.0.0")
    demo = msgspec.structs.replace(model_info_of(demo_folder), tokenizer_check=str(marker))

    check_tokenizer(demo, trust_remote_code=False)

    assert marker.read_text() != "transformers 5.0.0"


def test_a_worker_refuses_a_tokenizer_that_differs_from_that_of_transformers(tmp_path, demo_folder) -> None:
    file = json.loads((demo_folder / "tokenizer.json").read_text())
    file["normalizer"]["handle_chinese_chars"] = False
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(file))
    marker = tmp_path / "checked"
    model_info = msgspec.structs.replace(
        model_info_of(demo_folder), tokenizer_file=str(other), tokenizer_check=str(marker)
    )

    with pytest.raises(ModelError) as caught:
        check_tokenizer(model_info, trust_remote_code=False)

    assert not marker.exists()
    assert re.search(
        r"differs from the BertTokenizer of transformers: the text '.*中.*' gives the token ids .*\[.*\].* instead of "
        r"the token ids .*\[.*\]",
        str(caught.value),
    )


def test_the_file_that_records_the_comparison_is_another_one_when_files_change(
    tmp_path, demo_folder, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    first = model_info_of(folder).tokenizer_check
    assert model_info_of(folder).tokenizer_check == first

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "never_split": []}))

    assert model_info_of(folder).tokenizer_check not in ("", first)
