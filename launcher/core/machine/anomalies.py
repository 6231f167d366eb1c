"""Collects the anomalies of a machine, and reports each kind once, however many cpus have it.

Separate because both the readers of files and the assembly of a machine find anomalies. Nothing is decided here.
"""

from __future__ import annotations

NAMED = 6  # subjects listed by name for each kind


class Anomalies:
    """Kinds of anomalies with the cpus, nodes or files that have them, in the order in which they were found."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[str]] = {}

    def add(self, sentence: str, subject: str) -> None:
        """Record that ``sentence`` applies to ``subject``; ``{}`` in it stands for all subjects."""
        self._subjects.setdefault(sentence, []).append(subject)

    def sentences(self) -> tuple[str, ...]:
        """One sentence per kind, which lists the first ``NAMED`` subjects and counts the rest."""
        return tuple(sentence.replace("{}", _joined(found)) for sentence, found in self._subjects.items())


def _joined(subjects: list[str]) -> str:
    if len(subjects) <= NAMED:
        return ", ".join(subjects)
    return f"{', '.join(subjects[:NAMED])} and {len(subjects) - NAMED} more"
