"""What wakes the supervisor: signals, and the end of its starter.

The only place that touches signal handlers. One ``select`` waits for all of it, so
that the supervisor needs neither threads nor an event loop.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal


class StopRequested(BaseException):
    """A signal or the end of the lifeline. ``abandoned``: nobody is left to wait."""

    def __init__(self, reason: str, *, abandoned: bool = False) -> None:
        super().__init__(reason)
        self.abandoned = abandoned


class Alarm:
    """Wakes the loop at signals and at the end of the lifeline."""

    def __init__(self, lifeline: int | None) -> None:
        self._lifeline = lifeline
        self._parent = os.getppid()
        self._stop: str | None = None
        self._wake, waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The starter may have had them blocked; that is inherited.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _on_stop(self, number: int, frame: object) -> None:
        self._stop = signal.Signals(number).name

    def wait(self, timeout_s: float) -> None:
        """Return at a signal or after the time. Raises StopRequested."""
        self._check()
        watched = [self._wake] if self._lifeline is None else [self._wake, self._lifeline]
        ready, _, _ = select.select(watched, [], [], max(0.0, timeout_s))
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._lifeline in ready:
            raise StopRequested("its starter has closed the lifeline", abandoned=True)
        self._check()

    def _check(self) -> None:
        if self._stop is not None:
            raise StopRequested(self._stop)
        # A process that the starter has forked may hold the lifeline open after it.
        if self._lifeline is not None and os.getppid() != self._parent:
            raise StopRequested("its starter has ended", abandoned=True)

    def ignore_stops(self) -> None:
        """From here on it is stopping: further signals change nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def nap(self, timeout_s: float) -> None:
        """Wait for a child to end, without regard to requests to stop."""
        if self._wake in select.select([self._wake], [], [], max(0.0, timeout_s))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
