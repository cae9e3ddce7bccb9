"""Prints what tasks print: ``stream_output=True`` and ``mf.tail(follow=True)``.

A flood is cut: so many lines a second, and so many for a whole job, because a page keeps
every line. The newest are shown, and how many were left out. Runs on a thread of its
own while the job does; whoever waits for the job prints what is left before going on, in
the cell that waits.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from nbsched.client.tracker import JobTracker
from nbsched.client.transcript import Line

log = logging.getLogger(__name__)

TURN_S = 0.2
_LINES_A_TURN = 40
_CHARS_A_TURN = 13_000
MOST_LINES = 5000
"""For one job: what is printed stays in the notebook."""


class Lines(str):
    """A text that a notebook shows line by line."""

    __slots__ = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class Bounded:
    """Which lines are to be printed, turn by turn."""

    def __init__(self, most_lines: int = MOST_LINES) -> None:
        self._left = most_lines
        self._said = False

    def choose(self, lines: list[Line], lost: int) -> list[Line | str]:
        """Of the new lines the last ones that may be shown, and a word on the others."""
        if self._left <= 0:
            if self._said or not lines:
                return []
            self._said = True
            return ["[… no more is printed here; mf.tail() shows the last lines …]"]
        count = chars = 0
        most = min(_LINES_A_TURN, self._left)
        for line in reversed(lines):
            chars += len(line.text)
            if count == most or (count and chars > _CHARS_A_TURN):
                break
            count += 1
        lost += len(lines) - count
        self._left -= count
        shown: list[Line | str] = list(lines[len(lines) - count :])
        return [f"[… {lost:,} lines left out …]", *shown] if lost else shown


class OutputPrinter:
    """Prints one job's output: all of it, or from the last ``lines`` there are on."""

    def __init__(self, tracker: JobTracker, lines: int | None = None) -> None:
        self._tracker = weakref.ref(tracker)
        self._bounded = Bounded()
        # The job may have printed before its printer is made.
        self.printed = 0 if lines is None else max(0, tracker.lines_since(0)[1] - lines)
        """How many of the job's lines have been printed, or left out."""
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Print in the background until the job has ended; again after a retry."""
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="nbsched-output", daemon=True
                )
                self._thread.start()

    @contextmanager
    def here(self) -> Iterator[None]:
        """While a call waits: print in its cell, and everything before it returns."""
        self._context = contextvars.copy_context()
        try:
            yield
        finally:
            self.print_new()

    def print_new(self) -> None:
        """Print what has not been printed yet."""
        tracker = self._tracker()
        if tracker is None:
            return
        with self._lock:
            lines, count = tracker.lines_since(self.printed)
            chosen = self._bounded.choose(lines, count - self.printed - len(lines))
            self.printed = count
            if chosen:
                # A copy, because one context cannot be entered by two threads at once.
                self._context.copy().run(_print, chosen)

    def _run(self) -> None:
        changed = threading.Event()
        tracker = self._tracker()
        if tracker is None:
            return
        tracker.listen(changed.set)
        try:
            while not (tracker.finished or tracker.failure is not None):
                # Held while the job runs: it was asked to be shown, whoever holds it.
                changed.wait()
                changed.clear()
                self.print_new()
                time.sleep(TURN_S)
            self.print_new()
        except Exception:
            log.exception("job=%s its output cannot be printed any more", tracker.id)
        finally:
            tracker.unlisten(changed.set)


def follow(tracker: JobTracker, lines: int, upload: Callable[[float], None]) -> None:
    """Print a job's output, from the last lines on, until it has ended.

    ``upload(deadline)`` goes on uploading items, if there are any left, until then.
    """
    printer = OutputPrinter(tracker, lines)
    while not tracker.wait(lambda: tracker.finished, TURN_S):
        printer.print_new()
        upload(time.monotonic() + TURN_S)
    printer.print_new()


def _print(chosen: list[Line | str]) -> None:
    def stream_of(line: Line | str) -> int:
        return line.stream if isinstance(line, Line) else 0

    for stream, lines in groupby(chosen, key=stream_of):
        out = sys.stderr if stream else sys.stdout
        if out is not None:
            out.write("".join(f"{line}\n" for line in lines))
            out.flush()
