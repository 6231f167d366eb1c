"""Fixtures for models that are built once per session."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from launcher.host.model import tokenizer_files
from launcher.worker import convert_tokenizer
from tests.models.cases import ModelCase, RefusedCase
from tests.models.references import Results

in_process = tokenizer_files.convert_in_process


def convert_here(arguments: Sequence[str]) -> tuple[int, str]:
    """``convert_in_process`` without a process of its own, which would import transformers again for each of about a
    hundred models; ``tests/tokenizing`` and ``tests/worker`` test the process."""
    values = convert_tokenizer.parse_arguments(arguments)
    if values.trust_remote_code:
        return in_process(arguments)
    with contextlib.redirect_stderr(io.StringIO()) as output:
        status = convert_tokenizer.run(values)
    return status, output.getvalue()


@pytest.fixture(scope="session", autouse=True)
def one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small models are fastest in one thread; converted tokenizers stay out of the user's cache."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(tokenizer_files, "convert_in_process", convert_here)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelCase | RefusedCase], Path]:
    """Builds the folder of a case, once."""
    root = tmp_path_factory.mktemp("models")

    def folder(case: ModelCase | RefusedCase) -> Path:
        path = root / case.name
        if not path.is_dir():
            case.build(path)
        return path

    return folder


@pytest.fixture(scope="session")
def expected_of(folder_of: Callable[[ModelCase | RefusedCase], Path]) -> Callable[[ModelCase], Results]:
    """Computes the results of the library for a case, once."""
    known: dict[str, Results] = {}

    def expected(case: ModelCase) -> Results:
        if case.name not in known:
            known[case.name] = case.reference(folder_of(case), case.inputs)
        return known[case.name]

    return expected
