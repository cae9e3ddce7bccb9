"""How much of a task's text is kept, and where it survives its kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nbsched.kernel import sharedstate
from nbsched.kernel.output import HEAD_CHARS, TAIL_CHARS, KeptText
from nbsched.kernel.sharedstate import RING_BYTES, SharedState


def test_a_text_that_fits_is_kept_as_it_is() -> None:
    kept = KeptText()
    pieces = [f"{i}," for i in range(9000)]
    for piece in pieces:
        kept.add(piece, len(piece))
    assert kept.text() == "".join(pieces)
    assert kept.chars == kept.nbytes == len("".join(pieces)) < HEAD_CHARS + TAIL_CHARS


def test_a_long_text_keeps_both_ends_and_says_how_much_is_missing() -> None:
    kept = KeptText()
    whole = "".join(f"{i:07}\n" for i in range(100_000))
    for start in range(0, len(whole), 777):
        kept.add(whole[start : start + 777], 777)
    missing = len(whole) - HEAD_CHARS - TAIL_CHARS
    gap = f"\n[… {missing:,} characters left out …]\n"
    assert kept.text() == whole[:HEAD_CHARS] + gap + whole[-TAIL_CHARS:]


@pytest.fixture
def ends() -> Iterator[tuple[SharedState, SharedState]]:
    fd = sharedstate.create()
    kernel, daemon = SharedState(fd), SharedState(fd)
    os.close(fd)
    yield kernel, daemon
    kernel.close()
    daemon.close()


def test_a_ring_has_the_end_of_what_one_run_printed_to_a_stream(
    ends: tuple[SharedState, SharedState],
) -> None:
    kernel, daemon = ends
    whole = b"".join(b"%d," % i for i in range(9000))
    for start in range(0, len(whole), 101):
        piece = whole[start : start + 101]
        kernel.print_tail(7, 0, piece, len(piece))
    kernel.print_tail(7, 1, b"err", 3)
    assert daemon.printed(7, 0) == (len(whole), whole[-RING_BYTES:])
    assert daemon.printed(7, 0, after=len(whole) - 5) == (len(whole), whole[-5:])
    assert daemon.printed(7, 0, after=len(whole)) == (len(whole), b"")
    assert daemon.printed(7, 1) == (3, b"err")
    kernel.print_tail(8, 0, b"next", 4)
    assert daemon.printed(8, 0) == (4, b"next")
    assert daemon.printed(8, 1) == (0, b"")
    assert daemon.printed(7, 0) == (0, b"")


def test_of_a_long_piece_the_ring_needs_the_end_only(
    ends: tuple[SharedState, SharedState],
) -> None:
    kernel, daemon = ends
    kernel.print_tail(1, 0, b"abc", 3)
    kernel.print_tail(1, 0, b"x" * (RING_BYTES - 1) + b"!", 1_000_000)
    total, end = daemon.printed(1, 0)
    assert total == 1_000_003
    assert end == b"x" * (RING_BYTES - 1) + b"!"


def test_what_is_being_overwritten_is_not_read(ends: tuple[SharedState, SharedState]) -> None:
    kernel, daemon = ends
    kernel.print_tail(1, 0, bytes(RING_BYTES), RING_BYTES)
    kernel.cells[sharedstate._CLAIMED] += 100  # as in the middle of writing 100 bytes more
    assert daemon.printed(1, 0) == (RING_BYTES, bytes(RING_BYTES - 100))
