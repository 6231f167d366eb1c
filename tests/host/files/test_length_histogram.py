"""A length histogram from a file: errors name the option and the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.host.files.length_histogram import MAX_BYTES, read_histogram


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    for mark in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(mark + b"26 3\r\n91 1\r\n")
        assert read_histogram(file).counts == ((26, 3.0), (91, 1.0))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"\x89PNG\r\n\xff", "UTF-8"), (b"hello\n", "line 1"), (b"1" * (MAX_BYTES + 1), str(MAX_BYTES))],
)
def test_the_error_names_a_file_that_is_not_a_histogram(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "lengths"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"--lengths .*lengths") as refused:
        read_histogram(file)
    assert word in str(refused.value)


def test_the_error_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=f"--sizes {path}.*cannot be read"):
            read_histogram(path, "--sizes")
