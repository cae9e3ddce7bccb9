"""Keeps views of running jobs up to date: one thread for all of them.

The thread starts with the first view and ends a moment after the last. It only reads
`job.progress` and calls `View.draw`; a view that fails is dropped and logged, for a
display must never harm a job. Nothing here knows what a view looks like.

A view that costs a page messages says when they may be sent (`View.may_send`). Only what
a call wants to be seen at once, or to be the last, does not wait for that.

A view draws in a copy of the `contextvars` context of the call that created it:
ipykernel keeps there which cell a message belongs to, so output from this thread lands
in the cell that asked for it.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from nbsched.client.progress import Progress
from nbsched.display.pace import REFRESH_S
from nbsched.display.scenes import Subject

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LINGER_ROUNDS = 7
"""Idle rounds until the thread ends, so that many short waits do not start many."""
_MOST_RESTING = 30
"""Displays of ended jobs that still listen. A notebook with more has scrolled them away."""


class View(Protocol):
    """One picture of one job in one place.

    One in a page also has ``dirty`` (it has to be drawn, whether the job has changed or
    not), ``may_send(last=)`` and ``close()``.
    """

    def draw(self, progress: Progress) -> None:
        """Show this; the first call makes the view appear."""

    def end(self, progress: Progress) -> bool | None:
        """Show the last state, which stays. True when a page still listens: then the view
        rests, and is drawn again when it is dirty, or when the job runs again."""


class Live:
    """A view that is being kept up to date until its job ends or nobody needs it."""

    def __init__(
        self, job: Subject, view: View, clock: Callable[[], float], after_s: float
    ) -> None:
        self._job: Subject | None = job
        self._resting: weakref.ref[Subject] | None = None
        """The job that has ended, but could run again; held weakly."""
        self._id = job.id
        self._ended_as: Any = None
        self._view = view
        self._clock = clock
        self._due = clock() + after_s
        self._context = contextvars.copy_context()
        self._lock = threading.RLock()
        self._waits = 0
        self.appeared = False
        self.ended = False

    def tick(self) -> None:
        """Draw what is now, once it is time; ends by itself when the job has."""
        with self._lock:
            if self.ended or self._clock() < self._due:
                return
            if self._resting is not None:
                self._look()
            else:
                self._draw(self._may_send)

    def flush(self) -> None:
        """Draw now, whatever the clock says; for the last time when the job has ended."""
        with self._lock:
            self._draw(lambda last: True)

    def _draw(self, may_send: Callable[[bool], bool]) -> None:
        job = self._job
        if self.ended or job is None:
            return
        try:
            progress = job.progress
            if may_send(bool(progress.finished)):
                self.appeared = True
                (self._end if progress.finished else self._show)(progress)
        except Exception:
            self._drop()

    def _look(self) -> None:
        """While resting: go on when the job runs or has run again, or somebody clicked."""
        job = self._resting() if self._resting is not None else None
        try:
            if job is None:
                if self._may_send(False):
                    self._close()
            elif job.progress != self._ended_as:
                self._job, self._resting = job, None
                self._draw(self._may_send)
            elif getattr(self._view, "dirty", False) and self._may_send(False):
                self._show(job.progress)
        except Exception:
            self._drop()

    def _show(self, progress: Any) -> None:
        self._run(self._view.draw, progress)

    def _may_send(self, last: bool) -> bool:
        may_send = getattr(self._view, "may_send", None)
        return may_send is None or bool(may_send(last=last))

    def _drop(self) -> None:
        self.ended = True
        _log.debug("%s is no longer displayed", self._id, exc_info=True)

    @property
    def resting(self) -> bool:
        return self._resting is not None

    def wake(self) -> bool:
        """Draw the job as before it had ended, as it may run again. False when this cannot
        be: it has ended, or rested for a future that is gone, and can only be replaced."""
        with self._lock:
            if self._resting is not None:
                self._job = self._resting()
                if self._job is None:
                    self._close()  # before another takes its output
                    return False
                self._resting = None
            return not self.ended

    def rest_no_more(self) -> None:
        """Stop listening for clicks; what is shown stays."""
        with self._lock:
            if self._resting is not None and self._may_send(False):
                self._close()

    def _close(self) -> None:
        self.ended = True
        self._job = self._resting = None
        try:
            close = getattr(self._view, "close", None)
            if close is not None:
                self._context.copy().run(close)
        except Exception:
            self._drop()

    def wait_begins(self) -> None:
        """Somebody waits for the job, here: from now on messages belong to this cell.

        An output is updated by its id, wherever that is said. But what executes a
        notebook without a browser listens to the running cell only, and would miss the
        last state of an output in an earlier one.
        """
        with self._lock:
            self._waits += 1
            self._context = contextvars.copy_context()

    def wait_ends(self, *, stays: bool) -> None:
        """The last wait over decides: a view that ``stays`` goes on until the job ends.

        A job that ended before its view was due is not shown at all.
        """
        with self._lock:
            self._waits -= 1
            if self._waits > 0:
                return
            if self._clock() >= self._due and (stays or self._finished()):
                self.flush()
            if not (stays and self.appeared):
                self.stop()

    def stop(self) -> None:
        """Draw for the last time, if anything has been drawn. Never raises."""
        with self._lock:
            try:
                if self._resting is None:
                    if self.appeared and not self.ended and self._job is not None:
                        self._end(self._job.progress)
                    self.ended = self._resting is None
            except Exception:
                self._drop()

    def _finished(self) -> bool:
        try:
            return self._job is None or bool(self._job.progress.finished)
        except Exception:
            return False

    def _end(self, progress: Any) -> None:
        goes_on = self._run(self._view.end, progress)
        if goes_on and progress.finished and self._job is not None:
            self._resting = weakref.ref(self._job)
            self._ended_as = progress
            self._job = None
        else:
            self.ended = True  # not for a moment before: the ticker would let go of it

    def _run(self, draw: Callable[[Any], T], progress: Any) -> T:
        # A copy, because one context cannot be entered by two threads at once.
        return self._context.copy().run(draw, progress)


class Ticker:
    """The thread that ticks every `Live`."""

    def __init__(
        self, refresh_s: float = REFRESH_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._refresh_s = refresh_s
        self._clock = clock
        self._lives: list[Live] = []
        self._lock = threading.Lock()
        self._turn = 0
        self._thread: threading.Thread | None = None

    def add(self, job: Subject, view: View, *, after_s: float = 0.0) -> Live:
        """Show ``job`` from ``after_s`` on, unless it has ended or was stopped by then."""
        live = Live(job, view, self._clock, after_s)
        with self._lock:
            self._lives.append(live)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="nbsched-display", daemon=True
                )
                self._thread.start()
        return live

    @property
    def running(self) -> bool:
        return self._thread is not None

    def _run(self) -> None:
        idle = 0
        while idle < _LINGER_ROUNDS or not self._retire():
            time.sleep(self._refresh_s)
            idle = 0 if self._tick() else idle + 1

    def _tick(self) -> bool:
        with self._lock:
            self._lives = [live for live in self._lives if not live.ended]
            lives = list(self._lives)
        resting = [live for live in lives if live.resting]
        for live in resting[:-_MOST_RESTING]:
            self._tend(live, live.rest_no_more)
        # Each is first in its turn: what may be sent to a page may not do for all of them.
        self._turn += 1
        first = self._turn % len(lives) if lives else 0
        for live in lives[first:] + lives[:first]:
            self._tend(live, live.tick)
        return bool(lives)

    def _tend(self, live: Live, call: Callable[[], None]) -> None:
        """Whatever goes wrong with one, the others are drawn: this thread must not end."""
        try:
            call()
        except Exception:
            live.ended = True
            _log.exception("A display failed and is dropped")

    def _retire(self) -> bool:
        """Under the lock, so that no view is added to a thread that is about to end."""
        with self._lock:
            if self._lives:
                return False
            self._thread = None
            return True


_ticker = Ticker()


def ticker() -> Ticker:
    """The one of this process."""
    return _ticker


def _forget_after_fork() -> None:
    """A forked child has none of its parent's threads, and shows none of its views."""
    global _ticker
    _ticker = Ticker()


os.register_at_fork(after_in_child=_forget_after_fork)
