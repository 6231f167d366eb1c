"""Parses and formats kernel cpu lists (``0-3,8``) and hex masks (``00000000,0000ff00``).

The format is that of ``Documentation/admin-guide/cputopology.rst``; node lists have the same format.
"""

from __future__ import annotations

from collections.abc import Iterable

HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
MAX_ID = 1 << 16  # far above any kernel's NR_CPUS; a corrupt file must not exhaust memory


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Ids of a kernel list such as ``0-2,8-12:2/4``, ascending and unique. Raises ``ValueError``."""
    ids: set[int] = set()
    for part in text.replace("\0", "").strip().split(","):
        token = part.strip()
        if token and token != "(null)":
            ids.update(_parse_range(token))
    return tuple(sorted(ids))


def _parse_range(token: str) -> Iterable[int]:
    span, _, stride = token.partition(":")
    first_text, dash, last_text = span.partition("-")
    first = _number(first_text, token)
    last = _number(last_text, token) if dash else first
    if last < first:
        raise ValueError(f"{token!r} is not a cpu range: it ends before it starts")
    if not stride:
        return range(first, last + 1)
    used_text, _, group_text = stride.partition("/")
    used, group = _number(used_text, token), _number(group_text, token)
    if not 0 < used <= group:
        raise ValueError(f"{token!r} is not a cpu range: it uses {used} of every {group}")
    return (cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)


def _number(text: str, token: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{token!r} is not a cpu or a range of cpus")
    value = int(text)
    if value > MAX_ID:
        raise ValueError(f"{token!r} exceeds the largest supported id, {MAX_ID}")
    return value


def parse_cpu_mask(text: str) -> tuple[int, ...]:
    """Ids of a kernel hex mask: comma-separated 32-bit words, most significant first. Raises ``ValueError``."""
    # Shifting the number bit by bit would take quadratic time for thousands of cpus.
    digits = f"{mask_bits(text):b}"[::-1]
    return tuple(cpu for cpu, digit in enumerate(digits) if digit == "1")


def mask_bits(text: str) -> int:
    """The mask as one number, bit N for id N, for cheap comparisons. Raises ``ValueError``."""
    cleaned = text.replace("\0", "").strip()
    words = cleaned.split(",") if cleaned else []
    if not all(word and len(word) <= 8 and HEX_DIGITS.issuperset(word) for word in words):
        raise ValueError(f"{cleaned[:60]!r} is not a hex mask of 32-bit words")
    if 32 * len(words) > MAX_ID:
        raise ValueError(f"a mask of {32 * len(words)} bits exceeds the largest supported id, {MAX_ID}")
    return int("".join(word.rjust(8, "0") for word in words) or "0", 16)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The kernel list of these ids, such as ``0-2,8``; an empty string for no ids."""
    spans: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
