"""Who a client is, for sharing the instances, the queue and the memory for bodies among clients.

Separate because every limit of a client depends on it. The rule:

* An API key, if authentication has checked one: ``scope["state"]["client"]`` names it.
* Otherwise the address of the connection. An IPv6 address counts by its first 64 bits, which is what a single host
  usually gets.
* All connections without an address, such as those of a Unix socket, are one client.

Headers that nobody has checked do not count, neither keys nor ``X-Forwarded-For``: a client could send another value
with each request and so take as many shares as it likes. Behind a reverse proxy, all clients without a key are one.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Interface

from starlette.types import Scope

# The client of connections that have no address.
LOCAL = "local"


def client_name(scope: Scope) -> str:
    """The client that sent a request; never empty."""
    state = scope.get("state")
    if state and (known := state.get("client")):
        return str(known)
    peer = scope.get("client")
    if not peer or not peer[0]:
        return LOCAL
    address: str = peer[0]
    return address if ":" not in address else _network(address)


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    """The network of an IPv6 address: its first 64 bits; of an IPv4 address in IPv6 notation, that address."""
    ip = IPv6Address(address.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Interface(f"{ip}/64").network)
