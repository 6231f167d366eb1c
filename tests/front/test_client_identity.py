"""Who a client is, and that nothing else that it sends makes a difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from launcher.front.http.client_identity import LOCAL, client_name
from launcher.options import FrontOptions


def scope(address: str | None, **state: str) -> dict[str, Any]:
    return {"type": "http", "client": None if address is None else (address, 1234), "state": state, "headers": []}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", LOCAL),
        (None, LOCAL),
    ],
)
def test_a_client_without_a_key_is_its_address_or_its_network(address: str | None, name: str) -> None:
    assert client_name(scope(address)) == name


def test_a_checked_key_is_the_client_whatever_its_address() -> None:
    assert client_name(scope("192.0.2.1", client="key:1")) == client_name(scope("192.0.2.2", client="key:1")) == "key:1"


@pytest.mark.anyio
async def test_headers_that_nobody_checks_give_no_further_share(
    make_front: Any, make_client: Any, model_info: Any
) -> None:
    front = make_front(queue_items=2)
    await front.ready()
    future = front.dispatcher.enqueue([np.array([5], dtype=np.int32)] * 2, client="127.0.0.1")
    async with make_client(front.services(model_info, FrontOptions())) as client:
        for headers in ({}, {"authorization": "Bearer other"}, {"api-key": "x"}, {"x-forwarded-for": "192.0.2.9"}):
            answer = await client.post("/v1/embeddings", json={"input": "w1"}, headers=headers)
            assert answer.status_code == 429
    future.cancel()
