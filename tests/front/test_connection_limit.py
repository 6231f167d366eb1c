"""How many connections a process may have."""

from __future__ import annotations

import pytest

from launcher.errors import MachineError
from launcher.front.http.connection_limit import SPARE, SPARE_PER_INSTANCE, maximum_connections


def test_connections_leave_descriptors_for_what_is_open_for_files_and_for_instances() -> None:
    assert maximum_connections(None, 1024, 30, 4) == 1024 - 30 - SPARE - 4 * SPARE_PER_INSTANCE


def test_a_smaller_number_is_kept_and_a_larger_one_lowered() -> None:
    assert maximum_connections(10, 1024, 30, 4) == 10
    assert maximum_connections(5000, 1024, 30, 4) == maximum_connections(None, 1024, 30, 4)


def test_a_limit_that_leaves_no_connection_is_refused_with_one_that_does() -> None:
    needed = 30 + SPARE + SPARE_PER_INSTANCE + 1
    assert maximum_connections(None, needed, 30, 1) == 1
    with pytest.raises(MachineError, match=f"leaves none for connections.*raise it to at least {needed} "):
        maximum_connections(None, needed - 1, 30, 1)
