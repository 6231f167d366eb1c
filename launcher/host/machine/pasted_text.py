"""Decodes and cleans a text that a person copied from a terminal, a web page or a mail.

Separate because the readers of the formats expect what a program printed: without prompts, code fences, quotation marks
of mails or colours, and as UTF-8.
"""

from __future__ import annotations

import re

from launcher.errors import UsageError

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_FENCE = re.compile(r"\s*(```|~~~)")
_COMMAND = re.compile(r"(^|.*[\s$#%>])(\S*/)?lscpu(\s.*)?$")
_PROMPT = re.compile(r"\s*(\S+@\S+|\[\S+@[^\]]+\]|\([^)]*\)|[\w.~/-]*)?[^\w]*[$#%>❯]\s*(exit|logout)?\s*$")
_QUOTED = re.compile(r"\s*>+ ?")
UTF16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def decode(data: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16 (as PowerShell writes it). Raises ``UsageError`` if it is no text."""
    encoding = UTF16.get(data[:2]) or _utf16_without_mark(data) or "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding.startswith("utf-8") else "UTF-16"
        raise UsageError(f"it is not text: byte {error.start} is not valid {name}") from error
    if "\0" in text:
        raise UsageError("it is not text: it contains NUL bytes")
    return text


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 of ASCII characters has a zero in every second byte."""
    sample = data[:200]
    if len(sample) < 4 or len(data) % 2:
        return None
    if not any(sample[::2]) and all(sample[1::2]):
        return "utf-16-be"
    return "utf-16-le" if all(sample[::2]) and not any(sample[1::2]) else None


def clean(text: str) -> str:
    """The lines without colours, code fences, prompts with the command, quotation marks of mails, and backquotes."""
    lines = [_ESCAPES.sub("", line).replace("\u00a0", " ").rstrip() for line in text.splitlines()]
    filled = [line for line in lines if line.strip()]
    while filled and all(_QUOTED.match(line) for line in filled):
        lines = [_QUOTED.sub("", line, count=1) for line in lines]
        filled = [line for line in lines if line.strip()]
    kept = [line for line in lines if not (_FENCE.match(line) or _is_command(line))]
    return "\n".join(line.strip("`") for line in kept)


def _is_command(line: str) -> bool:
    """Whether a line is a prompt, alone or with a call of lscpu."""
    if line.lstrip().startswith("#") and "lscpu" not in line:
        return False
    return bool(_COMMAND.match(line) or _PROMPT.match(line)) if line.strip() else False
