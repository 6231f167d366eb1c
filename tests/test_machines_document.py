"""The tables of ``docs/machines.md`` are up to date. After an intended change, run ./scripts/docs."""

from __future__ import annotations

import pytest

from tests.machines import MISSING, each_recorded, recorded_names
from tests.machines_document import (
    DOCUMENT,
    HEAD,
    known_table,
    merged_guests,
    name_of,
    recorded_row,
    replaced,
    rows,
    section,
)

OUTDATED = "run ./scripts/docs, and review the changes"


def _documented() -> dict[str, str]:
    return {name_of(row): row for row in rows(section(DOCUMENT.read_text(), "recorded machines"))}


def test_the_table_of_known_machines_is_up_to_date() -> None:
    assert section(DOCUMENT.read_text(), "known machines").strip() == known_table(), OUTDATED


@each_recorded()
def test_the_row_of_each_recorded_machine_is_up_to_date(name: str) -> None:
    assert _documented().get(name) == recorded_row(name), OUTDATED


def test_the_table_has_a_row_for_every_recorded_machine_and_no_other() -> None:
    if not recorded_names():
        pytest.skip(MISSING)
    assert list(_documented()) == recorded_names(), OUTDATED


def test_all_true_cores_are_found_on_every_machine_of_the_table() -> None:
    cells = {name: row.split("|")[2].split("/") for name, row in _documented().items()}
    assert len(cells) > 80
    assert {name: (found, true) for name, (found, true) in cells.items() if int(found) != int(true)} == {}


def test_a_plan_is_refused_exactly_if_the_machine_has_fewer_cores_than_instances() -> None:
    refused = {name for name, row in _documented().items() if "| refused: " in row}
    few = {name for name, row in _documented().items() if int(row.split("|")[2].split("/")[0]) < 4}
    assert refused == few != set()


GUESTS = "| guest | asked |\n|---|---|\n"


@pytest.mark.parametrize(
    ("known", "fresh", "merged"),
    [
        ("", "| b | 1 |\n", "| b | 1 |"),
        ("| a | 1 |\n| b | 1 |\n", "| b | 2 |\n", "| a | 1 |\n| b | 2 |"),
        ("| b | 1 |\n| b, limited | 1 |\n", "| b | 2 |\n", "| b | 2 |"),  # a plan that is no longer made
        ("| b | 1 |\n", "| a | 1 |\n| a, limited | 1 |\n", "| a | 1 |\n| a, limited | 1 |\n| b | 1 |"),
        ("| b | 1 |\n", "", "| b | 1 |"),  # a run in which no guest booted
    ],
)
def test_booted_guests_replace_only_their_own_rows(known: str, fresh: str, merged: str) -> None:
    assert merged_guests(f"\n{GUESTS}{known}" if known else "", GUESTS + fresh) == GUESTS + merged


def test_the_text_around_a_table_is_kept() -> None:
    document = DOCUMENT.read_text()
    content = section(document, "recorded machines").strip()
    assert content.startswith(HEAD)
    assert replaced(document, "recorded machines", content) == document
    changed = replaced(document, "guests", "nothing")
    assert section(changed, "guests").strip() == "nothing"
    assert changed.partition("<!-- guests")[0] == document.partition("<!-- guests")[0]
