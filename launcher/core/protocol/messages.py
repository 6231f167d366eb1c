"""The messages between front and worker, as msgspec structs; ``frames`` puts them on the wire.

The front sends ``Setup`` once, then ``Run`` for each batch and ``Stop`` at the end. ``Probe`` is a ``Run`` that only
shows that the worker computes. The worker answers with ``Loading`` while it starts, one ``Ready`` or ``Unusable``, then
one ``Done`` or ``Failed`` for each ``Run``, in the order of arrival. Tensors are sent as raw bytes in the body of a
frame, never inside a message.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.core.protocol.load_proof import LoadProof
from launcher.core.protocol.model_info import ModelInfo
from launcher.options.choices import Backend, RunDtype

LoadStage = Literal["import", "load", "check", "warmup"]


class Setup(msgspec.Struct, tag="setup", frozen=True):
    """Front → worker, first: the model to load and the batch shapes to warm up.

    ``warmup`` holds (rows, width) of batches of equal items, in tokens, in the order in which to run them; ``mixed``
    holds the lengths of mixed batches, longest first, which follow. ``known`` holds the times of all of them if they
    were measured earlier, packed or not as ``known_packed`` says (see ``Ready``). ``fake_seconds_per_token`` is the
    time per token of the fake backend. ``pack`` False pads items even if the model can compute them packed. With
    ``proof``, which another worker has sent, the model is not checked again.
    """

    model_info: ModelInfo
    dtype: RunDtype
    backend: Backend
    warmup: tuple[tuple[int, int], ...]
    trust_remote_code: bool = False
    fake_seconds_per_token: float = 0.0
    pack: bool = True
    mixed: tuple[tuple[int, ...], ...] = ()
    known: tuple[tuple[int, int, int, float], ...] = ()
    known_packed: bool = False
    proof: LoadProof | None = None


class Run(msgspec.Struct, tag="run", frozen=True, omit_defaults=True):
    """Front → worker: one batch. Body: the token ids of all items, int32, concatenated; then, if ``typed``, their token
    type ids, uint8. For a custom task: the JSON of all items, concatenated, of ``payload_bytes`` each.

    ``lengths`` are the items' lengths in tokens, special tokens included, longest first. ``prompt_lengths`` is parallel
    to it: the number of leading tokens of each item that pooling ignores; empty if there are none.
    ``routes`` is parallel, too: 1 for an item of the second route (see ``Routes``), 0 for one of the first; empty if
    all are 0.
    """

    batch: int
    lengths: tuple[int, ...]
    typed: bool = False
    prompt_lengths: tuple[int, ...] = ()
    payload_bytes: tuple[int, ...] = ()
    routes: tuple[int, ...] = ()


class Probe(msgspec.Struct, tag="probe", frozen=True):
    """Front → worker: compute a sample of one token, and answer with ``Done`` without results."""

    batch: int


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Front → worker: finish the batches already sent, then exit with status 0."""


class Loading(msgspec.Struct, tag="loading", frozen=True):
    """Worker → front, during startup: progress. ``done`` is a fraction from 0 to 1."""

    stage: LoadStage
    done: float
    detail: str = ""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Worker → front: warm and ready for batches.

    ``width`` is the number of float32 values in a row of results. ``measured`` holds (items, tokens, pairs, seconds)
    of each batch of the warm-up, as in ``core.cost.cost_model``; ``cached`` means that it is ``Setup.known`` and that
    nothing was measured. ``accuracy`` is the lowest cosine similarity between the results in ``dtype`` and in fp32
    over the check texts, with all rows of an item as one vector (None for fp32). ``packed`` means that items are
    computed concatenated; otherwise they are padded to the longest. ``proof`` is what
    other workers need not check; None if the backend checks nothing.
    """

    pid: int
    threads: int
    dtype: str
    backend: str
    width: int
    labels: tuple[str, ...]
    torch_version: str
    load_seconds: float
    warmup_seconds: float
    measured: tuple[tuple[int, int, int, float], ...]
    accuracy: float | None
    notes: tuple[str, ...] = ()
    packed: bool = False
    cached: bool = False
    proof: LoadProof | None = None


class Unusable(msgspec.Struct, tag="unusable", frozen=True):
    """Worker → front, instead of ``Ready``: the model cannot be served, and a restart would not help."""

    reason: str


class Done(msgspec.Struct, tag="done", frozen=True, omit_defaults=True):
    """Worker → front: the results of a batch. Body: float32, rows × ``width``, in the order of ``Run.lengths``; for a
    custom task, the JSON of the results, of which ``rows`` has the sizes in bytes.

    ``ModelInfo.rows`` tells the number of rows of an item; if it varies, ``rows`` has it for each item, and is empty
    otherwise. ``seconds`` is the time from receiving the batch to having the results; ``computed_tokens`` includes
    padding.
    """

    batch: int
    items: int
    width: int
    seconds: float
    computed_tokens: int
    rows: tuple[int, ...] = ()


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Worker → front: this batch raised an exception; the worker keeps running and takes the next one."""

    batch: int
    reason: str


ToWorker = Setup | Run | Probe | Stop
ToFront = Loading | Ready | Unusable | Done | Failed
