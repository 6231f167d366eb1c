"""Every model of the table gives the results of its library, or is refused with the stated reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launcher.errors import UsageError
from launcher.host.model.architectures import DECODERS, ENCODER_DECODERS
from launcher.host.model.encoders import ENCODERS, WITHOUT_BF16
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions
from launcher.options.choices import Dtype
from launcher.worker.interfaces import ModelError
from tests.models.cases import CASES, REFUSED, ModelCase, RefusedCase
from tests.models.compare import Served, lowest_cosine, relative_error
from tests.models.references import Results

FolderOf = Callable[[ModelCase | RefusedCase], Path]
ExpectedOf = Callable[[ModelCase], Results]

LARGEST_BOUND = 1e-5
# The cosine that a model states for its check texts is the lowest of those; other texts may be a little lower.
FACTOR, MARGIN = 3, 1e-3


def marks_of(case: ModelCase) -> tuple[pytest.MarkDecorator, ...]:
    """Cases that are converted are slow. The tests of a case run in one process, which builds its model once."""
    group = pytest.mark.xdist_group(case.name)
    return (group, pytest.mark.slow) if case.slow else (group,)


def error_of(case: ModelCase, expected: Results, actual: Results) -> float:
    """See ``relative_error``."""
    if not case.as_vector:
        return relative_error(expected, actual)
    inputs = zip(expected, actual, strict=True)
    return max(relative_error([rows.reshape(1, -1)], [others.reshape(1, -1)]) for rows, others in inputs)


def typical_difference(results: Results) -> float:
    """The median distance between the mean rows of two inputs, relative to their size. (The scores of two of them may
    be nearly equal by chance.)"""
    means = [rows.mean(axis=0) for rows in results]
    pairs = itertools.combinations(means, 2)
    return float(np.median([np.linalg.norm(one - other) / np.linalg.norm(one) for one, other in pairs]))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks_of(case)) for case in CASES])
def test_results_are_those_of_the_library(case: ModelCase, folder_of: FolderOf, expected_of: ExpectedOf) -> None:
    folder, expected = folder_of(case), expected_of(case)
    # Otherwise, a wrong result would go unnoticed.
    assert typical_difference(expected) > 1000 * case.bound

    for layout in ("auto", "sorted"):
        with Served(folder, case.options, layout=layout) as served:
            packed = case.layout == "packed" and (layout == "auto" or served.model_info.static)
            assert served.loaded.packed == packed, served.loaded.notes
            for batching, results in served.results_by_batching(case.inputs).items():
                assert error_of(case, expected, results) <= case.bound, (layout, batching)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks_of(case)) for case in CASES])
def test_results_in_lower_precision_are_as_close_as_stated(
    case: ModelCase, folder_of: FolderOf, expected_of: ExpectedOf
) -> None:
    folder, expected = folder_of(case), expected_of(case)
    for dtype in ("bf16", "int8"):
        if refusal := {"bf16": case.bf16, "int8": case.int8}[dtype]:
            with pytest.raises((UsageError, ModelError), match=refusal):
                Served(folder, case.options, dtype=dtype)
            continue
        with Served(folder, case.options, dtype=dtype) as served:
            least = 1 - FACTOR * (1 - (served.loaded.accuracy or 0)) - MARGIN
            for batching, results in served.results_by_batching(case.inputs).items():
                assert lowest_cosine(expected, results) >= least, (dtype, batching, served.loaded.accuracy)


@pytest.mark.parametrize(("dtype", "noted"), [("auto", True), ("fp32", False)])
def test_the_automatic_dtype_of_a_model_without_bf16_is_noted(folder_of: FolderOf, dtype: Dtype, noted: bool) -> None:
    case = next(case for case in CASES if case.family in WITHOUT_BF16)

    model_info = resolve(ModelOptions(model=str(folder_of(case)), dtype=dtype))

    assert not model_info.bf16
    assert any("--dtype auto is fp32" in note for note in model_info.notes) == noted


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_the_model_is_refused_with_its_reason(case: RefusedCase, folder_of: FolderOf) -> None:
    with pytest.raises((UsageError, ModelError)) as caught:
        Served(folder_of(case), case.options)

    assert case.message in str(caught.value)


def test_each_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in (*CASES, *REFUSED)]
    assert len(set(names)) == len(names)


def test_every_supported_family_is_in_the_table() -> None:
    assert {case.family for case in CASES} >= {*ENCODERS, *DECODERS, *ENCODER_DECODERS}


def test_the_table_has_as_many_families_and_tasks_as_promised() -> None:
    assert len({(case.family, case.task) for case in CASES}) >= 45


def test_no_bound_is_larger_than_the_promised_one() -> None:
    assert max(case.bound for case in CASES) <= LARGEST_BOUND
