"""What tasks print: caught at ``sys.stdout`` and ``sys.stderr``, kept for their outcome.

Owns the two streams of the kernel, and how much of a task's text is kept. Costs nothing
for a task that prints nothing: the first write leaves a note (see `disturbances`). Never
sends anything; the outbox takes what there is when it is given the task's outcome.

What is printed while nothing runs, or in a child that a task forked, goes to the
kernel's own descriptors, where the daemon finds native output, too.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from typing import Any, NamedTuple

from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.sharedstate import RING_BYTES, SharedState

HEAD_CHARS = 16 * 1024
TAIL_CHARS = 48 * 1024


class Printed(NamedTuple):
    """What one task has printed: UTF-8 of both streams, and its bytes before cutting."""

    stdout: bytes
    stderr: bytes
    nbytes: tuple[int, int]


class KeptText:
    """The beginning and the end of a text, however long it becomes."""

    def __init__(self) -> None:
        self.chars = self.nbytes = 0
        self._head: list[str] = []
        self._head_room = HEAD_CHARS
        self._tail: list[str] = []
        self._tail_chars = 0

    def add(self, text: str, nbytes: int) -> None:
        """More text came, of so many bytes as UTF-8."""
        self.chars += len(text)
        self.nbytes += nbytes
        if self._head_room:
            first = text[: self._head_room]
            self._head.append(first)
            self._head_room -= len(first)
            text = text[len(first) :]
        if text:
            text = text[-TAIL_CHARS:]
            self._tail.append(text)
            self._tail_chars += len(text)
            if self._tail_chars > 2 * TAIL_CHARS:  # not at each write: joining costs
                self._cut()

    def text(self) -> str:
        """All of it, or both ends with a word on what is missing between them."""
        self._cut()
        left_out = self.chars - (HEAD_CHARS - self._head_room) - self._tail_chars
        gap = f"\n[… {left_out:,} characters left out …]\n" if left_out else ""
        return "".join(self._head) + gap + "".join(self._tail)

    def _cut(self) -> None:
        self._tail = ["".join(self._tail)[-TAIL_CHARS:]]
        self._tail_chars = len(self._tail[0])


class Output:
    """Both streams of this kernel, and what the running task has written to them."""

    def __init__(self, state: SharedState, disturbances: Disturbances) -> None:
        self._state = state
        self._notes = disturbances.notes
        self._pid = os.getpid()
        # Reentrant: a signal handler may print while its thread does.
        self._lock = threading.RLock()
        self._kept = (KeptText(), KeptText())
        self._streams = (TaskStream(self, 0), TaskStream(self, 1))
        self.dirty = False
        """Whether there is something to `take`."""

    def install(self) -> None:
        """Become the interpreter's streams, again if a task has left others there."""
        sys.stdout, sys.stderr = self._streams

    def write(self, stream: int, text: str) -> None:
        """Text came, on any thread."""
        # First, without the lock: in a forked child another thread may seem to hold it.
        if os.getpid() != self._pid or not (run := self._state.active):
            _write_through(stream, text)
            return
        with self._lock:
            if not self.dirty:
                self.dirty = True
                self._notes.append("printed")
            nbytes = len(text) if text.isascii() else len(_utf8(text))
            self._kept[stream].add(text, nbytes)
            self._state.print_tail(run, stream, _utf8(text[-RING_BYTES:]), nbytes)

    def take(self) -> Printed | None:
        """What was printed since the last call; None when it was nothing."""
        if not self.dirty:
            return None
        with self._lock:
            stdout, stderr = self._kept
            self._kept = (KeptText(), KeptText())
            self.dirty = False
        printed = (_utf8(stdout.text()), _utf8(stderr.text()))
        return Printed(*printed, (stdout.nbytes, stderr.nbytes))

    def spill(self) -> None:
        """Before a task: what a thread printed after the last one's end is not its own."""
        left = self.take()
        if left is not None:
            _write_through(0, left.stdout.decode())
            _write_through(1, left.stderr.decode())


class TaskStream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of a kernel. Nothing waits in it."""

    def __init__(self, output: Output, stream: int) -> None:
        self._output = output
        self._stream = stream
        self.name = ("<stdout>", "<stderr>")[stream]
        self.mode = "w"
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._output.write(self._stream, text)
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream + 1

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The next task needs it."""

    def reconfigure(self, **_: Any) -> None:
        """As of a `TextIOWrapper`; there is nothing to choose."""


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer``: bytes of UTF-8 text."""

    def __init__(self, text: TaskStream) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._text.write(self._decoder.decode(view))
        return len(view)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def close(self) -> None:
        """As that of the text."""


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _write_through(stream: int, text: str) -> None:
    data = memoryview(_utf8(text))
    while data:
        data = data[os.write(stream + 1, data) :]
