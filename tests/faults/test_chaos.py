"""A short run of ``scripts/chaos``."""

from __future__ import annotations

import pytest

from tests.faults.chaos import Chaos, chaotic_server


@pytest.mark.slow
def test_random_faults_lose_no_response_and_falsify_no_vector() -> None:
    with chaotic_server() as (server, folder):
        lines: list[str] = []
        outcome = Chaos(server, folder, seed=3, say=lines.append).run(5.0)
        assert (outcome.wrong, outcome.lost) == ([], []), "\n".join([*lines, outcome.table()])
        assert outcome.answered
        assert lines
