"""Progress as text on a stream: a line that renews itself, or one line per 10 %.

Writes to the stream it is given and nowhere else. Knows nothing of threads: whoever
calls `draw` and `end` sees to it that they do not overlap.
"""

from __future__ import annotations

import os
import shutil
from typing import ClassVar, TextIO

from nbsched.client.progress import Progress
from nbsched.display.text import cells, line


class TerminalLine:
    """One line that is written over itself with ``\\r``, on a terminal.

    A terminal has one such line: of several jobs that are waited for at once, the first
    one takes it, and the others write their last state only.
    """

    _owner: ClassVar[TerminalLine | None] = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn_cells = 0

    def draw(self, progress: Progress) -> None:
        if TerminalLine._owner is None:
            TerminalLine._owner = self
        if TerminalLine._owner is self:
            self._write(progress)

    def end(self, progress: Progress) -> None:
        """Leave the final line standing; wipe it when the job goes on unwatched."""
        if progress.finished:
            self._write(progress, "\n")
        elif self._drawn_cells:
            self._stream.write("\r" + " " * self._drawn_cells + "\r")
            self._stream.flush()
        self._drawn_cells = 0
        if TerminalLine._owner is self:
            TerminalLine._owner = None

    def _write(self, progress: Progress, after: str = "") -> None:
        # One cell less than there is: a full line would wrap in many terminals.
        text = line(progress, _columns(self._stream) - 1, ascii_only=not _can_draw(self._stream))
        padding = " " * max(0, self._drawn_cells - cells(text))
        self._stream.write(f"\r{text}{padding}{after}")
        self._stream.flush()
        self._drawn_cells = cells(text)


class PipeLines:
    """A line for every 10 % that ended and for every new note: for logs and pipes.

    While the total is not known, a line each time the number of ended tasks doubles.
    """

    def __init__(self, stream: TextIO, width: int = 120) -> None:
        self.stream = stream
        self.finished = False
        self._width = width
        self._written: tuple[bool, int, str] | None = None

    def draw(self, progress: Progress) -> None:
        step = _step(progress)
        if step != self._written and (progress.done or progress.note):
            self._written = step
            text = line(progress, self._width, ascii_only=not _can_draw(self.stream))
            self.stream.write(text + "\n")
            self.stream.flush()

    def end(self, progress: Progress) -> None:
        self.finished = progress.finished
        if progress.finished:
            self.draw(progress)


def _step(progress: Progress) -> tuple[bool, int, str]:
    if progress.total is None:
        return False, progress.done.bit_length(), progress.note
    return True, progress.done * 10 // max(progress.total, 1), progress.note


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size().columns


def _can_draw(stream: TextIO) -> bool:
    """Whether the stream's encoding has the characters of the bar."""
    try:
        "█▒✓".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
