"""What the routes of tasks have in common whose results have several rows for each input.

Separate from ``task_route`` because their size depends on more than the number of inputs, which alone is limited there.
"""

from __future__ import annotations

import asyncio
from typing import Any

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.core.scheduling.events import Priority
from launcher.errors import RequestError
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.task_route import TaskHandler
from launcher.front.http.body_decoder import Body
from launcher.front.http.disconnect import Client
from launcher.front.request_results import Vectors, split_rows
from launcher.front.tokenizer import Tokenized

# Values that are encoded before other requests get a turn: about 3 ms.
VALUES_PER_TURN = 50_000


class ItemRowsHandler(TaskHandler[Body]):
    """Encodes the results input by input."""

    def encode_item(self, body: Any, rows: Vectors, index: int, tokenized: Tokenized) -> bytes:
        """The JSON of one result, from its rows; ``index`` is that of its input."""
        raise NotImplementedError

    async def _tokenize(self, body: Body, client: Client, priority: Priority, deadline: float | None) -> Tokenized:
        tokenized = await super()._tokenize(body, client, priority, deadline)
        if self._model_info.rows == "token":
            self._check_size(tokenized.tokens, f"'inputs' have {tokenized.tokens} tokens together")
        return tokenized

    def _check_size(self, rows: int, what: str) -> None:
        limit = self._options.result_bytes // (FLOAT32_BYTES * self._model_info.result_width)
        if rows > limit:
            raise RequestError(
                f"{what}, the limit is {limit} per request for this model; send several requests",
                status=413,
                code="too_many_tokens" if self._model_info.rows == "token" else "too_many_results",
                param="inputs",
            )

    async def encode_outcome(self, body: Body, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        if self._model_info.rows == "varying":
            self._check_size(len(outcome.results), f"the results have {len(outcome.results)} entries together")
        counts = outcome.rows or [len(item) for item in tokenized.items]
        parts, done = [], 0
        for index, rows in enumerate(split_rows(outcome.results, counts)):
            parts.append(self.encode_item(body, rows, index, tokenized))
            done += rows.size
            if done >= VALUES_PER_TURN:
                done = 0
                await asyncio.sleep(0)
        return parts
