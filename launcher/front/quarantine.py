"""Remembers inputs that were being computed when workers were lost, across requests.

Without it, a client that repeats a bad input could keep all workers restarting. An input is a suspect when a worker was
lost with it, alone or with the other inputs of its batch; a suspect is computed alone from then on. It is quarantined,
and refused, when two workers were lost with it, at least once while it was alone. A result clears it: a worker may be
lost for any other reason.

Inputs are recognized by a hash of their task and their token ids, or of their JSON for a custom class; the inputs
themselves are not kept. Entries expire, and the oldest ones are dropped when there are too many. Separate from the
scheduler, which knows no contents; time is an argument.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.front.channel import CLOSED, FAILED
from launcher.front.item_details import Tokens

# Workers that an input may cost.
MAX_LOSSES = 2
# A batch has at most some hundred items, each a suspect after its worker was lost.
MAX_ENTRIES = 4096


@dataclass(slots=True)
class Entry:
    """A suspect or quarantined input: ``losses`` is the number of workers lost with it, ``alone`` whether it was alone
    in a batch at least once, ``at`` the time of the last loss, and ``reason`` what is known of it."""

    digest: str
    size: int
    instance: int
    losses: int = 0
    alone: bool = False
    at: float = 0.0
    reason: str = ""

    @property
    def quarantined(self) -> bool:
        """Whether the input is refused."""
        return self.alone and self.losses >= MAX_LOSSES


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a worker, with its running batch: the instance, why, and when."""

    instance: int
    reason: str
    at: float


class Quarantine:
    """See the module docstring. Entries expire ``seconds`` after the last loss; with 0, nothing is remembered."""

    def __init__(self, task: str, seconds: float, max_entries: int = MAX_ENTRIES) -> None:
        self._salt = task.encode()
        self._seconds = seconds
        self._max_entries = max_entries
        # By digest, the latest loss last.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        # The sizes of all entries so far, so that other inputs need no hash.
        self._sizes: set[int] = set()
        self.refused = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def blame(self, items: Sequence[Tokens], loss: Loss) -> bool:
        """A worker was lost while it computed a batch of these items. Returns whether that quarantines one of them."""
        if not self._seconds:
            return False
        found = {self._digest(item): len(item) for item in items}  # several clients may have sent the same input
        quarantined = False
        for digest, size in found.items():
            entry = self._entries.pop(digest, None) or Entry(digest, size, loss.instance)
            entry.losses += 1
            entry.alone = entry.alone or len(found) == 1
            entry.instance, entry.at, entry.reason = loss.instance, loss.at, loss.reason
            quarantined = quarantined or entry.quarantined
            self._entries[digest] = entry
            self._sizes.add(size)
        self._drop(loss.at)
        return quarantined

    def explain(self, instance: int, at: float, reason: str) -> None:
        """How the worker of an instance, which was lost with its batch at ``at`` or later, has ended; ignored if the
        reason of its loss is known."""
        for entry in self._entries.values():
            if entry.instance == instance and entry.at >= at and entry.reason.startswith((CLOSED, FAILED)):
                entry.reason = reason

    def clear_computed(self, items: Sequence[Tokens]) -> None:
        """These items were computed: they are not suspect any more."""
        for item in items:
            if len(item) in self._sizes:
                self._entries.pop(self._digest(item), None)

    def check(self, items: Sequence[Tokens], now: float) -> tuple[str | None, tuple[int, ...]]:
        """The reason to refuse a request with these items, or None; and the indices of those that are suspect."""
        self._drop(now)
        suspects = []
        for index, item in enumerate(items):
            entry = self._entries.get(self._digest(item)) if len(item) in self._sizes else None
            if entry is not None and entry.quarantined:
                self.refused += 1
                return self._refusal(index, entry, now), ()
            if entry is not None:
                suspects.append(index)
        return None, tuple(suspects)

    def clear(self) -> int:
        """Forget everything; returns the number of inputs that were quarantined."""
        count = self.count
        self._entries.clear()
        self._sizes.clear()
        return count

    @property
    def count(self) -> int:
        """The number of quarantined inputs."""
        return sum(entry.quarantined for entry in self._entries.values())

    def report(self, now: float) -> list[dict[str, object]]:
        """The quarantined inputs, the latest last, for ``/info``."""
        self._drop(now)
        return [
            {
                "hash": entry.digest,
                "size": entry.size,
                "workers_lost": entry.losses,
                "seconds_ago": round(now - entry.at, 1),
                "expires_in": round(entry.at + self._seconds - now, 1),
                "reason": entry.reason,
            }
            for entry in self._entries.values()
            if entry.quarantined
        ]

    def _digest(self, item: Tokens) -> str:
        return hashlib.blake2b(item.tobytes(), digest_size=16, key=self._salt[:64]).hexdigest()

    def _refusal(self, index: int, entry: Entry, now: float) -> str:
        ago, left = now - entry.at, entry.at + self._seconds - now
        return (
            f"input {index} is quarantined: {entry.losses} workers were lost while they computed it, the last one "
            f"{ago:.0f} s ago ({entry.reason}); it is refused for another {left:.0f} s"
        )

    def _drop(self, now: float) -> None:
        """Drop expired entries, and suspects and then others if there are too many."""
        while self._entries and now >= next(iter(self._entries.values())).at + self._seconds:
            self._entries.popitem(last=False)
        if len(self._entries) > self._max_entries:
            order = sorted(self._entries.values(), key=lambda entry: (entry.quarantined, entry.at))
            for entry in order[: len(order) - self._max_entries]:
                del self._entries[entry.digest]
        if not self._entries:
            self._sizes.clear()
