"""Length classes: the range of sequence lengths that an instance serves.

Ranges are closed, start at 1, and have no gaps or overlaps: ``32:8,384:16,max:24`` gives 1…32, 33…384 and
385…limit, in whatever order the entries were written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import UsageError

MAX_DIGITS = 9  # far above any length or core count


@dataclass(frozen=True, slots=True)
class LengthClass:
    """Sequences of ``min_length`` to ``max_length`` tokens, both inclusive, including special tokens.

    ``max_length`` None: up to the limit of the model, which is not known yet.
    """

    min_length: int
    max_length: int | None

    @property
    def name(self) -> str:
        """The name in logs and metrics: ``1-32``, ``33-max``."""
        return f"{self.min_length}-{'max' if self.max_length is None else self.max_length}"

    def to_json(self) -> dict[str, int | None]:
        """The class in every JSON document of the program."""
        return {"min_length": self.min_length, "max_length": self.max_length}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LengthClass:
        """The class that ``to_json`` wrote. Raises ``KeyError`` or ``TypeError`` for anything else."""
        return cls(document["min_length"], document["max_length"])

    def admits(self, length: int) -> bool:
        """Whether a sequence of ``length`` tokens belongs to this class."""
        return self.min_length <= length and (self.max_length is None or length <= self.max_length)


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One entry of ``--classes``: sequences of up to ``max_length`` tokens (None: the model's limit) on ``cores``."""

    max_length: int | None
    cores: int


def parse_classes(text: str) -> tuple[ClassSpec, ...]:
    """The entries of ``32:8,384:16,max:24``, shortest first. Raises ``UsageError``.

    A length may occur several times: the class then has that many instances.
    """
    specs = [_parse_entry(entry.strip(), text) for entry in text.split(",")]
    if not any(spec.max_length is None for spec in specs):
        longest = max(spec.max_length or 0 for spec in specs)
        raise UsageError(
            f"--classes {text!r} leaves a gap: no class serves sequences of more than {longest} tokens; "
            "add an entry such as max:4"
        )
    return tuple(sorted(specs, key=lambda spec: (spec.max_length is None, spec.max_length or 0)))


def _parse_entry(entry: str, text: str) -> ClassSpec:
    length, colon, cores = entry.partition(":")
    length, cores = length.strip(), cores.strip()
    if "-" in length:
        raise UsageError(
            f"--classes {text!r}: {entry!r} is a range; give only the largest length of each class (32:8,max:24), "
            "so that classes have no gaps or overlaps"
        )
    if not colon or not _is_number(cores) or not (length == "max" or _is_number(length)):
        raise UsageError(f"--classes {text!r}: {entry!r} must have the form LENGTH:CORES, such as 32:8 or max:24")
    if int(cores) == 0 or (length != "max" and int(length) == 0):
        raise UsageError(f"--classes {text!r}: {entry!r} contains 0; lengths and cores must be at least 1")
    return ClassSpec(None if length == "max" else int(length), int(cores))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def resolve_classes(specs: Sequence[ClassSpec], limit: int | None) -> tuple[LengthClass, ...]:
    """The length range of each entry, for a model that accepts ``limit`` tokens (None: unknown).

    Raises ``UsageError`` if a class lies beyond the limit.
    """
    classes: list[LengthClass] = []
    bounds = sorted({spec.max_length for spec in specs if spec.max_length is not None})
    for bound in bounds:
        if limit is not None and bound >= limit:
            raise UsageError(
                f"--classes has a class up to {bound} tokens and one above, but the model accepts at most {limit} "
                f"tokens; use max for the longest class and lengths below {limit} for the others"
            )
    for spec in specs:
        upper = limit if spec.max_length is None else spec.max_length
        lower = max((bound for bound in bounds if spec.max_length is None or bound < spec.max_length), default=0) + 1
        classes.append(LengthClass(lower, upper))
    return tuple(classes)


# The built-in length distribution: log-normal, with the median and spread of short real texts (queries, sentences,
# paragraphs).
BUILTIN_MEDIAN = 26
BUILTIN_SPREAD = 0.98  # standard deviation of the logarithm: ln(91 / 26) / 1.2816
BUILTIN_SHORTEST = 3
BUILTIN_LONGEST = 256  # the limit of the demo model


def builtin_lengths() -> dict[int, float]:
    """The probability of each length, in tokens, in the built-in distribution; they sum to 1."""
    cuts = [0.0, *(_builtin_below(length + 0.5) for length in range(BUILTIN_SHORTEST, BUILTIN_LONGEST)), 1.0]
    lengths = range(BUILTIN_SHORTEST, BUILTIN_LONGEST + 1)
    return {length: high - low for length, low, high in zip(lengths, cuts, cuts[1:], strict=False)}


def _builtin_below(length: float) -> float:
    return (1 + math.erf(math.log(length / BUILTIN_MEDIAN) / BUILTIN_SPREAD / math.sqrt(2))) / 2
