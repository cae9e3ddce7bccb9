"""How much of a task's text is kept, and where it survives its kernel."""

from __future__ import annotations

import os

from nbsched.kernel import sharedstate
from nbsched.kernel.output import HEAD_CHARS, TAIL_CHARS, KeptText
from nbsched.kernel.sharedstate import RING_BYTES, SharedState


def test_a_text_that_fits_is_kept_as_it_is() -> None:
    kept = KeptText()
    pieces = [f"{i}," for i in range(9000)]
    for piece in pieces:
        kept.add(piece)
    assert kept.text() == "".join(pieces)
    assert kept.chars == len("".join(pieces)) < HEAD_CHARS + TAIL_CHARS


def test_a_long_text_keeps_both_ends_and_says_how_much_is_missing() -> None:
    kept = KeptText()
    whole = "".join(f"{i:07}\n" for i in range(100_000))
    for start in range(0, len(whole), 777):
        kept.add(whole[start : start + 777])
    missing = len(whole) - HEAD_CHARS - TAIL_CHARS
    gap = f"\n[… {missing:,} characters left out …]\n"
    assert kept.text() == whole[:HEAD_CHARS] + gap + whole[-TAIL_CHARS:]


def test_the_ring_has_the_end_of_what_one_run_printed() -> None:
    fd = sharedstate.create()
    kernel, daemon = SharedState(fd), SharedState(fd)
    os.close(fd)
    whole = b"".join(b"%d," % i for i in range(5000))
    for start in range(0, len(whole), 101):
        kernel.print_tail(7, whole[start : start + 101])
    assert daemon.last_printed(7) == whole[-RING_BYTES:]
    kernel.print_tail(8, b"next")
    assert daemon.last_printed(8) == b"next"
    assert daemon.last_printed(7) == b""
    kernel.close()
    daemon.close()
