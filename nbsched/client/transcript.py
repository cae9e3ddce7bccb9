"""What the tasks of one job print, as lines in the order in which they became known.

Two sources say the same things: running tasks tell now and then what is new (and leave
out what is too much), and a task's outcome has its text, cut to its two ends. Each byte
becomes part of one line at most, and what nobody has is counted in a line of its own.
Pure data, bounded: old lines go, with a count; the tracker guards it with its lock.
"""

from __future__ import annotations

import codecs
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from nbsched.messages import Outcome, PrintedText
from nbsched.model import WorkerId

MOST_LINES = 2000
LINE_CHARS = 2000
_LIVE_TASKS = 200
_KNOWN_RUNS = 10_000
"""Runs of which it is remembered how far they are known, or that they have ended."""
_LIVE_BYTES = 16 * 1024
_TAIL_BYTES = 48 * 1024
"""What an outcome keeps at least of the end of a text that it cuts (in the kernel: so many
characters)."""


class RunKey(NamedTuple):
    """Names a run: a task may have two at a time, each with a text of its own."""

    task: int
    worker: WorkerId | None
    round: int
    attempt: int


class Line(NamedTuple):
    """One line of one task. ``stream`` 1 is stderr."""

    task: int
    stream: int
    text: str

    def __str__(self) -> str:
        return f"[{self.task}] {self.text}"


class Transcript:
    """The last lines of a job's tasks."""

    def __init__(self) -> None:
        self.count = 0
        """Lines so far, those that are gone included."""
        self._lines: deque[Line] = deque(maxlen=MOST_LINES)
        self._runs: OrderedDict[RunKey, tuple[_Stream, ...]] = OrderedDict()
        self._known: OrderedDict[RunKey, tuple[int, ...] | None] = OrderedDict()
        """How far streams are known of runs that had to make room; None: they have ended."""

    def since(self, count: int) -> list[Line]:
        """The lines behind the first ``count``, as far as they are still there."""
        new = min(self.count - count, len(self._lines))
        return [self._lines[i] for i in range(-new, 0)]

    def last(self, count: int) -> list[Line]:
        """The last lines; of each running task also the one that has no end yet."""
        lines = self.since(self.count - count)
        for run, streams in self._runs.items():
            lines += [Line(run.task, s.number, s.unended) for s in streams if s.unended]
        return lines[-count:] if count > 0 else []

    def running_text(self, index: int, stream: int) -> str:
        """The newest that a running task has told of a stream, as `Outcome` counts them; of
        two runs, that which told last."""
        run = next((run for run in reversed(self._runs) if run.task == index), None)
        return "" if run is None else self._runs[run][stream].newest.decode(errors="ignore")

    def told(self, worker: WorkerId, printed: Sequence[PrintedText]) -> None:
        """Running tasks have printed this."""
        for part in printed:
            streams = self._streams(RunKey(part.index, worker, part.round, part.attempt))
            if streams is not None:
                self._add(part.index, streams[part.stream], part.end - len(part.text), part.text)

    def ended(self, worker: WorkerId | None, outcome: Outcome, output: bytes) -> None:
        """A task has ended, and this is what its outcome has of its text."""
        index = outcome.start
        run = RunKey(index, worker, outcome.round, outcome.attempt)
        streams = self._streams(run)
        if streams is None:
            return  # it was read before
        at = 0
        for stream, size, total in zip(streams, outcome.output, outcome.printed, strict=True):
            kept = output[at : at + size]
            at += size
            missing = total - stream.end
            if len(kept) != total and stream.end:  # cut, and its beginning is known
                kept = kept[-min(missing, _TAIL_BYTES) :] if missing > 0 else b""
                self._add(index, stream, total - len(kept), kept)
            elif len(kept) != total:  # it says itself what is left out
                self._add(index, stream, 0, kept)
            elif missing > 0:
                self._add(index, stream, stream.end, kept[stream.end :])
            if stream.unended:  # here, for the next stream's lines come behind it
                self._append(Line(index, stream.number, stream.take_unended()))
        self._close(run)
        self._remember(run, None)

    def ended_silently(self, start: int, stop: int) -> None:
        """These tasks have ended, and nothing more is known of what they printed."""
        for run in [run for run in self._runs if start <= run.task < stop]:
            self._close(run)

    def _streams(self, run: RunKey) -> tuple[_Stream, ...] | None:
        """The streams of a run; None when it is known to have ended."""
        streams = self._runs.get(run)
        if streams is None:
            known = self._known.pop(run, (0, 0, 0))
            if known is None:
                self._remember(run, None)
                return None
            # What goes past Python is shown with stdout.
            pairs = zip((0, 1, 0), known, strict=True)
            streams = self._runs[run] = tuple(_Stream(number, end) for number, end in pairs)
        self._runs.move_to_end(run)
        while len(self._runs) > _LIVE_TASKS:
            oldest = next(iter(self._runs))
            self._remember(oldest, tuple(stream.end for stream in self._runs[oldest]))
            self._close(oldest)
        return streams

    def _close(self, run: RunKey) -> None:
        for stream in self._runs.pop(run):
            if stream.unended:
                self._append(Line(run.task, stream.number, stream.take_unended()))

    def _remember(self, run: RunKey, ends: tuple[int, ...] | None) -> None:
        self._known[run] = ends
        if len(self._known) > _KNOWN_RUNS:
            self._known.popitem(last=False)

    def _add(self, index: int, stream: _Stream, start: int, data: bytes) -> None:
        """Bytes of a stream from ``start`` on; what is known of them is skipped."""
        gap = start - stream.end
        if gap > 0:
            self._left_out(index, stream, gap)
        else:
            data = data[-gap:]
        for line in stream.lines(start + max(0, -gap), data):
            self._append(Line(index, stream.number, line))

    def _left_out(self, index: int, stream: _Stream, nbytes: int) -> None:
        if stream.unended:
            self._append(Line(index, stream.number, stream.take_unended()))
        self._append(Line(index, stream.number, f"[… {nbytes:,} bytes left out …]"))

    def _append(self, line: Line) -> None:
        self.count += 1
        self._lines.append(line)


class _Stream:
    """One stream of a task that runs."""

    __slots__ = ("_decoder", "_left_out", "end", "newest", "number", "unended")

    def __init__(self, number: int, end: int) -> None:
        self.number = number
        self.end = end
        """Bytes of it that are known, or known to be missing."""
        self.newest = b""
        self.unended = ""
        """The line that has no end yet."""
        self._left_out = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def lines(self, start: int, data: bytes) -> list[str]:
        """Take in bytes; the lines that are complete now."""
        self.end = max(self.end, start + len(data))
        self.newest = (self.newest + data)[-_LIVE_BYTES:]
        whole = self._decoder.decode(data).split("\n")
        lines = []
        for text in whole[:-1]:
            self._continue(text)
            lines.append(self.take_unended())
        self._continue(whole[-1])
        return lines

    def take_unended(self) -> str:
        text, self.unended = self.unended, ""
        if self._left_out:
            text, self._left_out = f"{text} …", False
        return text

    def _continue(self, text: str) -> None:
        text = text.removesuffix("\r")
        if "\r" in text:  # as a terminal shows a bar that draws itself anew
            self.unended, text = "", text.rpartition("\r")[2]
        room = LINE_CHARS - len(self.unended)
        self._left_out = self._left_out or len(text) > room
        self.unended += text[:room]
