"""Fixtures for models that are built once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models.cases import ModelCase, RefusedCase
from tests.models.references import Results


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
