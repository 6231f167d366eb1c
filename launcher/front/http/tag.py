"""``POST /predict`` where the model tags tokens: entities of texts, or labels token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from launcher.core.protocol.model_info import FLOAT32_BYTES
from launcher.core.scheduling.events import Priority
from launcher.core.tasks.entities import OUTSIDE, join
from launcher.errors import RequestError
from launcher.front.dispatcher import Vectors
from launcher.front.http.bodies import Tagged, TagRequest
from launcher.front.http.compute import ComputeRoute, Services
from launcher.front.http.disconnect import DisconnectWatch
from launcher.front.http.exchange import Intake
from launcher.front.http.openai import usage
from launcher.front.tokenizer import Tokenized

_encode = msgspec.json.Encoder().encode

# Of all tokens of a request; results of other tasks are bounded by the number of inputs.
RESULT_BYTES = 16 * 1024 * 1024
# 1 to 3 ms of work. An input costs as much as so many entries, and so many tokens that are looked at as one.
ENTRIES_AT_ONCE = 1000
ENTRIES_OF_INPUT = 8
TOKENS_OF_ENTRY = 16

Spans = npt.NDArray[np.int32]
Best = npt.NDArray[np.int64]


class TagRoute(ComputeRoute[TagRequest]):
    """``POST /predict`` of a tagger."""

    path = "/predict"
    field = "inputs"
    body_type = TagRequest

    def __init__(self, services: Services, intake: Intake) -> None:
        super().__init__(services, intake)
        self._before = _encode({"model": self._model_info.name, "task": "tag"})[:-1] + b',"predictions":['
        self._labels = self._model_info.labels
        self._outside = np.array([label == OUTSIDE for label in self._labels])
        self._special_ids = np.array(sorted(self._tokenizer.special_ids), dtype=np.int32)

    def check(self, body: TagRequest) -> None:
        """See the base class."""
        if body.aggregation == "simple" and body.inputs and _texts(body.inputs) is None:
            raise RequestError(
                "token ids are answered token by token; leave 'aggregation' out, or send texts to have tokens joined",
                code="invalid_aggregation",
                param="aggregation",
            )

    def inputs(self, body: TagRequest) -> tuple[Any, bool]:
        """See the base class."""
        return body.inputs, body.truncate

    async def _tokenize(
        self, body: TagRequest, disconnect: DisconnectWatch, priority: Priority, deadline: float | None
    ) -> Tokenized:
        tokenized = await super()._tokenize(body, disconnect, priority, deadline)
        most = RESULT_BYTES // (FLOAT32_BYTES * self._model_info.result_width)
        if tokenized.tokens > most:
            raise RequestError(
                f"'inputs' have {tokenized.tokens} tokens together, a request may have {most} for this model; "
                "send several requests",
                status=413,
                code="too_many_tokens",
                param="inputs",
            )
        return tokenized

    async def all_entries(self, body: TagRequest, results: Vectors, tokenized: Tokenized) -> list[bytes]:
        """See the base class."""
        texts = _texts(body.inputs)
        entries: list[bytes] = []
        start = done = 0
        for index, ids in enumerate(tokenized.items):
            if done >= ENTRIES_AT_ONCE:
                done = 0
                await asyncio.sleep(0)
            scores = results[start : start + len(ids)]
            start += len(ids)
            done += ENTRIES_OF_INPUT + len(ids) // TOKENS_OF_ENTRY
            if texts is None:
                tagged = self._of_ids(scores, ids)
            else:
                tagged = self._of_text(scores, texts[index], tokenized.spans[index], body.aggregation != "none")
            written = []
            for entry in tagged:
                written.append(_encode(entry))
                done += 1
                if done >= ENTRIES_AT_ONCE:
                    done = 0
                    await asyncio.sleep(0)
            entries.append(b"[%b]" % b",".join(written))
        return entries

    def envelope(self, tokenized: Tokenized) -> tuple[bytes, bytes]:
        """See the base class."""
        return self._before, b'],"usage":%b}' % _encode(usage(tokenized))

    def _of_ids(self, scores: Vectors, ids: npt.NDArray[np.int32]) -> Iterator[Tagged]:
        best = scores.argmax(axis=1)
        real = np.flatnonzero(~np.isin(ids, self._special_ids))
        for token, label, score in self._at(real, best, scores):
            yield Tagged(label, score, index=token)

    def _of_text(self, scores: Vectors, text: str, spans: Spans, joined: bool) -> Iterator[Tagged]:
        best = scores.argmax(axis=1)
        real = spans[:, 0] >= 0
        if not joined:
            for token, label, score in self._at(np.flatnonzero(real), best, scores):
                start, end = spans[token].tolist()
                yield _tagged(label, score, text, start, end)
            return
        inside = self._at(np.flatnonzero(real & ~self._outside[best]), best, scores)
        for entity in join(*zip(*inside, strict=True)) if inside else ():
            start, end = int(spans[entity.first, 0]), int(spans[entity.last, 1])
            yield _tagged(entity.label, _decimals(np.array([entity.score], dtype=np.float32))[0], text, start, end)

    def _at(self, tokens: Best, best: Best, scores: Vectors) -> list[tuple[int, str, float]]:
        """Tokens at these places with their best labels and the scores of these."""
        chosen = best[tokens]
        labels = [self._labels[label] for label in chosen.tolist()]
        return list(zip(tokens.tolist(), labels, _decimals(scores[tokens, chosen]), strict=True))


def _tagged(label: str, score: float, text: str, start: int, end: int) -> Tagged:
    """What stands at a place of a text, without the white space around it that some tokenizers count to a token."""
    found = text[start:end]
    if found and (found[0].isspace() or found[-1].isspace()) and (inner := found.strip()):
        start += len(found) - len(found.lstrip())
        found, end = inner, start + len(inner)
    return Tagged(label, score, found, start, end)


def _decimals(values: Vectors) -> list[float]:
    """The values as the shortest decimals that are read back as the same float32: 0.9, not 0.8999999761581421."""
    numbers: list[float] = orjson.loads(orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers


def _texts(inputs: Any) -> Sequence[str] | None:
    """The texts of a request; None where its inputs are token ids."""
    if isinstance(inputs, str):
        return [inputs]
    return inputs if inputs and isinstance(inputs[0], str) else None
