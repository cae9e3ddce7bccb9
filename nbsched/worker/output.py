"""What the tasks of one kernel print, as far as the daemon has to do with it.

That is: what goes past Python's streams (programs, C libraries), which comes through the
kernel's pipe and belongs to whatever runs then; the last words of a task that took its
kernel down; and what is new of a running task's text, for those who watch. Pure
bookkeeping over the shared memory; sends nothing.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple

import msgspec

from nbsched.kernel.output import KeptText
from nbsched.kernel.sharedstate import RING_BYTES, SharedState
from nbsched.messages import Outcome


class LastWords(NamedTuple):
    """The end of what a task has printed, as UTF-8: stdout, stderr, and past Python."""

    texts: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    nbytes: tuple[int, int, int] = (0, 0, 0)

    def added_to(self, outcome: Outcome, body: bytes) -> tuple[Outcome, bytes]:
        """An outcome of this one task, made by the daemon, with these words."""
        if not any(self.nbytes):
            return outcome, body
        sizes = (len(self.texts[0]), len(self.texts[1]), len(self.texts[2]))
        added = msgspec.structs.replace(outcome, output=sizes, printed=self.nbytes)
        return added, body + b"".join(self.texts)


class KernelOutput:
    """Of one kernel; tasks are named by their runs."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._native: dict[int, KeptText] = {}
        self._told_run = 0
        self._told = [0, 0, 0]

    def came(self, run: int, data: bytes) -> None:
        """This came through the pipe while ``run`` was the one that runs."""
        text = self._decoder.decode(data)
        if text:
            self._native.setdefault(run, KeptText()).add(text, len(text.encode()))

    def with_native(self, first_run: int, outcome: Outcome, body: bytes) -> tuple[Outcome, bytes]:
        """The kernel's own outcome with what came through the pipe meanwhile. Of several
        tasks at once it cannot be told whose that was, and it goes."""
        count = outcome.stop - outcome.start
        kept = self._native.get(first_run)
        for run in [run for run in self._native if run < first_run + count]:
            del self._native[run]
        if count != 1 or kept is None:
            return outcome, body
        text = kept.text().encode()
        stdout, stderr, _ = outcome.output
        added = msgspec.structs.replace(
            outcome,
            output=(stdout, stderr, len(text)),
            printed=(*outcome.printed[:2], kept.nbytes),
        )
        return added, body + text

    def last_words(self, run: int) -> LastWords:
        """Of a task whose kernel is dead."""
        stdout, out = self._state.printed(run, 0)
        stderr, err = self._state.printed(run, 1)
        native = self._native.get(run)
        past = b"" if native is None else native.text().encode()
        nbytes = (stdout, stderr, 0 if native is None else native.nbytes)
        return LastWords((_whole(out), _whole(err), past), nbytes)

    def news(self, run: int) -> list[tuple[int, int, bytes]]:
        """What the running task has printed since the last call: stream, bytes so far, and
        the last of them."""
        if run != self._told_run:
            self._told_run, self._told = run, [0, 0, 0]
        found = [
            (stream, *self._state.printed(run, stream, self._told[stream])) for stream in (0, 1)
        ]
        native = self._native.get(run)
        if native is not None and (more := native.nbytes - self._told[2]):
            found.append((2, native.nbytes, native.text().encode()[-min(more, RING_BYTES) :]))
        for stream, total, _ in found:
            self._told[stream] = total
        return [part for part in found if part[2]]


def _whole(data: bytes) -> bytes:
    """Without the piece of a character that the ring's edge has left."""
    return data.decode(errors="ignore").encode()
