"""What the routes need from the rest of the server.

Separate so that API families can be described without the application that composes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.scheduling.memory_gate import MemoryGate
from launcher.front.dispatcher import Dispatcher
from launcher.front.http.admin_access import Administration
from launcher.front.http.authentication import ApiKeys
from launcher.front.input_reader import InputReader
from launcher.front.metrics import FrontMetrics
from launcher.front.token_id_decoder import TokenIdDecoder
from launcher.options import FrontOptions


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes need.

    ``info`` returns the body of ``GET /info``; ``states`` the state of each instance, by id; ``is_ready`` whether
    enough instances are ready and the server is not draining; ``probe`` has each instance compute, and returns whether
    it did. ``id_decoder`` decodes token ids of clients, if
    ``options.token_ids`` is an encoding. ``bulk_lock`` is held by the one bulk request that may
    use a thread. ``administration`` is None if there is none. ``memory_gate`` refuses requests while memory is short.
    With ``api_keys``, requests need one of them.
    """

    dispatcher: Dispatcher
    tokenizer: InputReader
    model_info: ModelInfo
    options: FrontOptions
    info: Callable[[], Mapping[str, Any]]
    states: Callable[[], Mapping[str, Any]]
    is_ready: Callable[[], bool]
    probe: Callable[[], Awaitable[Mapping[str, bool]]]
    metrics: FrontMetrics
    id_decoder: TokenIdDecoder | None = None
    administration: Administration | None = None
    bulk_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    memory_gate: MemoryGate = field(default_factory=MemoryGate)
    api_keys: ApiKeys | None = None
