"""The child processes of the supervisor: started, started again, stopped.

Knows nothing of what they are. Children are spawned from
the supervisor's only thread, with ``preexec_fn``: unsafe in a program with threads,
where a lock may be held at the fork, and safe here. It asks the kernel to kill the
child when that thread, and so the supervisor, is gone; a launcher such as setpriv
would do the same, but is not everywhere and costs another exec.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nbsched.local.home import Home

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 5.0
_STEADY_AFTER_S = 20.0
"""A child that lived this long is started again without delay."""


_KILL_TIMEOUT_S = 10.0
"""SIGKILL takes effect at once, save on a process that the system itself holds up."""


def _make_deathsig() -> Callable[[], None] | None:
    """What runs in a child between fork and exec."""
    if sys.platform != "linux":
        return None  # the children's own watchdogs, and the stop in order, must do
    # Looked up before any fork: loading a library in the child could need a lock.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:  # it died before the request was made
            os._exit(1)

    return die_with_supervisor


@dataclass
class Command:
    """How a child is started."""

    argv: list[str]
    cwd: str
    environ: dict[str, str] | None = None
    umask: int = 0o077
    keep: tuple[int, ...] = ()
    """Descriptors that the child inherits."""


@dataclass
class Child:
    """A part of the cluster that is to run until the cluster stops."""

    name: str
    home: Home
    command: Command
    restarts: int = 0
    started_at: float = 0.0
    restart_due: float | None = None
    """Monotonic time at which it is to be started again."""
    _process: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _backoff_s: float = field(default=0.0)

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        log = self.home.open_log(self.name)
        try:
            self._process = subprocess.Popen(
                self.command.argv,
                cwd=self.command.cwd,
                env=self.command.environ,
                umask=self.command.umask,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self.command.keep,
                preexec_fn=_make_deathsig(),
            )
        finally:
            os.close(log)
        self.restart_due = None
        self.started_at = time.time()
        self._started = time.monotonic()
        logger.info("started part=%s pid=%d", self.name, self.pid)

    def ended(self) -> int | None:
        """Reap the child if it has ended: its return code, once. None: it runs."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is not None:
            self._process = None
            logger.info("ended part=%s code=%d", self.name, code)
        return code

    def plan_restart(self) -> None:
        """Decide when to start again a child that has ended: at once at first, later
        when it does not live long."""
        now = time.monotonic()
        if now - self._started >= _STEADY_AFTER_S:
            self._backoff_s = 0.0
        self.restart_due = now + self._backoff_s
        self._backoff_s = min(max(self._backoff_s * 2, _FIRST_BACKOFF_S), _LAST_BACKOFF_S)

    def start_again(self) -> None:
        """Start it; when the system refuses (no memory, no processes), plan anew."""
        self.restarts += 1
        try:
            self.start()
        except OSError as error:
            logger.warning("cannot start part=%s: %s", self.name, error)
            self.plan_restart()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


class Family:
    """All children of the supervisor, in the order in which they are listed."""

    def __init__(self, nap: Callable[[float], None]) -> None:
        """``nap(seconds)`` returns after that time, or when a child has ended."""
        self._nap = nap
        self.children: dict[str, Child] = {}

    def start(self, name: str, home: Home, command: Command) -> Child:
        """Start a child, in place of the one that had this name."""
        child = self.children[name] = Child(name, home, command)
        child.start()
        return child

    def restart_dead(self) -> bool:
        """Start again what has ended and is due. True: something changed."""
        changed = False
        for child in self.children.values():
            if child.ended() is not None:
                child.plan_restart()
                changed = True
            if child.restart_due is not None and time.monotonic() >= child.restart_due:
                child.start_again()
                changed = True
        return changed

    def time_to_next_restart(self, at_most_s: float) -> float:
        due = [c.restart_due for c in self.children.values() if c.restart_due is not None]
        return min([at_most_s, *(at - time.monotonic() for at in due)])

    def end(self, children: list[Child], number: signal.Signals, grace_s: float) -> None:
        """Send a signal and wait until all have ended, or the grace is over."""
        deadline = time.monotonic() + grace_s
        for child in children:
            child.signal(number)
        while _any_left(children) and time.monotonic() < deadline:
            self._nap(deadline - time.monotonic())

    def kill_all(self) -> None:
        self.end(list(self.children.values()), signal.SIGKILL, _KILL_TIMEOUT_S)


def _any_left(children: list[Child]) -> bool:
    for child in children:
        child.ended()
    return any(child.pid for child in children)
