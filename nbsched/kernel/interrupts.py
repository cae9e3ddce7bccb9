"""The one way in which a running task is interrupted: a SIGINT that names its run.

A signal may come late, when the task it was meant for has ended. So the handler
raises KeyboardInterrupt only while the user's code of exactly the targeted run is
being executed, and once per run. The next task and our own bookkeeping never see it.
"""

from __future__ import annotations

import signal
from types import FrameType

from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.sharedstate import SharedState

_ANY = -1


class Interrupts:
    """Arms and disarms SIGINT around the user's code. Main thread only."""

    def __init__(self, state: SharedState, disturbances: Disturbances) -> None:
        self._state = state
        self._disturbances = disturbances
        self._armed = 0
        self.hit = 0
        """The run that was interrupted last."""
        self.install()

    def install(self) -> None:
        """Take SIGINT, again if a task has set a handler of its own."""
        if signal.getsignal(signal.SIGINT) != self._handle:
            signal.signal(signal.SIGINT, self._handle)

    def arm(self, run: int) -> None:
        """From here on the run may be interrupted; also when the signal came before."""
        self._armed = run
        if self._state.target == run:
            self._armed = 0
            raise KeyboardInterrupt

    def arm_all(self) -> None:
        """From here on whatever run is active may be interrupted. The daemon aims only
        at a run that it has seen active, so no signal comes before that."""
        self._armed = _ANY

    def disarm(self) -> None:
        self._armed = 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        run = self._state.active if self._armed == _ANY else self._armed
        if run and run == self._state.target and run != self.hit:
            self._armed = 0  # once: what follows in this task is our own bookkeeping
            self.hit = run
            self._disturbances.notes.append("interrupted")
            raise KeyboardInterrupt
