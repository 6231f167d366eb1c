"""Whether other machines may be able to use the planned server without a key.

Separate from the server, because reports show the same warning and must not import it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from launcher.options import FrontOptions
from launcher.options.env_prefixes import API_KEY_VARIABLE


def exposure_warnings(front: FrontOptions, environment: Mapping[str, str]) -> tuple[str, ...]:
    """A warning if other machines may be able to connect and no API key is required."""
    if not _is_exposed(front) or front.api_key_file is not None or environment.get(API_KEY_VARIABLE):
        return ()
    return (
        f"Everyone who can reach {front.host} port {front.port} can use this server, because no API key is required; "
        f"set --api-key-file FILE or {API_KEY_VARIABLE}, or listen on 127.0.0.1 (--host).",
    )


def _is_exposed(front: FrontOptions) -> bool:
    """Whether other machines may be able to connect. A host name other than localhost counts as exposed."""
    if front.uds is not None or front.host == "localhost" or front.host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(front.host.partition("%")[0]).is_loopback
    except ValueError:
        return True
