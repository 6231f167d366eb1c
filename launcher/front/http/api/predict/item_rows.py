"""What the routes of tasks have in common whose results have several rows for each input.

Separate from ``task_route`` because their size depends on more than the number of inputs, which alone is limited there.
"""

from __future__ import annotations

import asyncio

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.errors import RequestError
from launcher.front.dispatcher import Outcome
from launcher.front.http.api.predict.task_route import TaskHandler
from launcher.front.http.body_decoder import Body
from launcher.front.http.inference_route import Caller, InferenceContext
from launcher.front.request_results import Vectors, split_rows
from launcher.front.tokenizer import Tokenized


class ItemRowsHandler(TaskHandler[Body]):
    """Limits the rows of a request, and encodes them in parts, so that other requests get a turn."""

    # Values that are encoded in one part: about 3 ms.
    values_per_turn = 50_000
    # The rows of an input before this one are not returned.
    first_row = 0

    def __init__(self, context: InferenceContext) -> None:
        super().__init__(context)
        rows = self._options.result_bytes // (FLOAT32_BYTES * self._model_info.result_width)
        self._limit = rows
        if self._model_info.rows == "varying":
            self._max_rows = rows

    def encode_rows(self, rows: Vectors) -> bytes:
        """Some consecutive rows of one input as a JSON list."""
        raise NotImplementedError

    async def _tokenize(self, body: Body, caller: Caller) -> Tokenized:
        tokenized = await super()._tokenize(body, caller)
        if self._model_info.rows == "token" and tokenized.tokens > self._limit:
            raise self._too_many(f"{self.inputs_field!r} have {tokenized.tokens} tokens together", "too_many_tokens")
        return tokenized

    def _too_many(self, what: str, code: str) -> RequestError:
        return RequestError(
            f"{what}, the limit is {self._limit} per request for this model; send several requests",
            status=413,
            code=code,
            param=self.inputs_field,
        )

    async def encode_outcome(self, body: Body, outcome: Outcome, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        if (entries := sum(outcome.rows)) > self._limit:
            raise self._too_many(f"the results have {entries} entries together", "too_many_results")
        counts = outcome.rows or [len(item) for item in tokenized.items]
        step = max(1, self.values_per_turn // self._model_info.result_width)
        parts, done = [], 0
        for all_rows in split_rows(outcome.results, counts):
            rows = all_rows[self.first_row :]
            pieces = []
            for start in range(0, max(1, len(rows)), step):
                pieces.append(self.encode_rows(rows[start : start + step]))
                done += len(rows[start : start + step])
                if done >= step:
                    done = 0
                    await asyncio.sleep(0)
            parts.append(pieces[0] if len(pieces) == 1 else b"[%b]" % b",".join(piece[1:-1] for piece in pieces))
        return parts
