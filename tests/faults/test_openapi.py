"""Requests generated from ``/openapi.json`` against a real server: every response is one that the document describes.

The same requests in every run. ``/admin`` is left out, because a generated plan would replace the instances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi import checks

from tests.e2e.running import Launch, Running

pytestmark = pytest.mark.slow

WITH_BODY, WITHOUT_BODY = 150, 5  # requests for a route; those without a body have little to vary
CHECKS: list[Any] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.unsupported_method,
    checks.negative_data_rejection,
    checks.missing_required_header,
]
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Running]:
    with launch("--model", "random:tiny", "--backend", "fake", "--instances", "1", "--token-ids", "accept") as running:
        yield running.wait_serving()


@pytest.fixture(scope="module")
def operations(server: Running) -> list[Any]:
    schema = schemathesis.openapi.from_url(server.address + "/openapi.json").exclude(path_regex="^/admin")
    results: list[Any] = list(schema.get_all_operations())
    return [result.ok() for result in results]


def statuses(operation: Any, mode: schemathesis.GenerationMode) -> set[int]:
    """The statuses of the responses to generated requests, each of which is described."""
    seen: set[int] = set()

    @settings(
        max_examples=WITH_BODY if operation.body else WITHOUT_BODY,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call()
        # Generated deadlines can pass at once.
        assert response.status_code < 500 or (response.status_code, '"code":"deadline_' in response.text) == (504, True)
        case.validate_response(response, checks=CHECKS)
        seen.add(response.status_code)

    send()
    return seen


def test_responses_to_valid_requests_are_described(server: Running, operations: list[Any]) -> None:
    seen = {operation.label: statuses(operation, VALID) for operation in operations}
    assert {"POST /v1/embeddings", "POST /predict", "GET /ready"} <= set(seen)
    assert 200 in seen["POST /v1/embeddings"] & seen["POST /predict"] & seen["GET /ready"]
    assert server.get("/health").status_code == 200


def test_responses_to_invalid_requests_are_described(server: Running, operations: list[Any]) -> None:
    seen = {operation.label: statuses(operation, INVALID) for operation in operations if operation.body}
    assert set(seen) == {"POST /v1/embeddings", "POST /predict"}
    assert 400 in seen["POST /v1/embeddings"] & seen["POST /predict"]
    assert server.embed("a").status_code == 200
