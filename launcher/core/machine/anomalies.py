"""Collects what is odd about a machine and says each kind of it once, however many cpus show it.

Separate because the reading of files and the judging of what was read both find oddities. Nothing is decided here.
"""

from __future__ import annotations

NAMED = 6


class Oddities:
    """Sentences in the order in which their kind was first seen."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[str]] = {}

    def add(self, sentence: str, subject: str) -> None:
        """Note that ``sentence``, in which ``{}`` stands for the subjects, is true of ``subject`` too."""
        self._subjects.setdefault(sentence, []).append(subject)

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each kind; of many subjects the first few are named and the others counted."""
        return tuple(sentence.replace("{}", _joined(found)) for sentence, found in self._subjects.items())


def _joined(subjects: list[str]) -> str:
    if len(subjects) <= NAMED:
        return ", ".join(subjects)
    return f"{', '.join(subjects[:NAMED])} and {len(subjects) - NAMED} more"
