"""Options as the user writes them."""

from __future__ import annotations

import sys

import pytest

from nbsched.client.options import Options


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2 GiB", 2 * 2**30),
        ("2GB", 2 * 10**9),
        ("1.5g", 3 * 2**29),
        ("500 MB", 500 * 10**6),
        ("100k", 100 * 1024),
        ("1TiB", 2**40),
        ("4096", 4096),
        ("4096 B", 4096),
        (12345, 12345),
        (None, None),
    ],
)
def test_memory_is_bytes_or_text(text: int | str | None, nbytes: int | None) -> None:
    assert Options(memory=text).memory_bytes == nbytes


@pytest.mark.parametrize("much", [sys.maxsize, 2**62, 10**30, "9999999999 TiB", "9" * 400])
def test_more_memory_than_any_host_has_is_as_much_as_can_be_counted(much: int | str) -> None:
    assert Options(memory=much).memory_bytes == 2**60
