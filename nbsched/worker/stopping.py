"""Stopping what runs in a kernel: what was cancelled, and what has broken a limit.

First SIGINT, aimed at the one run, so that the task can clean up and its kernel lives on;
when the time for that is over, SIGKILL.
"""

from __future__ import annotations

import logging
import time

from nbsched.kernel.protocol import Breach
from nbsched.kernel.sharedstate import CANCELLED, OVERDRAWN, TIMED_OUT
from nbsched.worker.backlog import Piece
from nbsched.worker.kernelslot import Active, KernelSlot
from nbsched.worker.memory import MemoryWatch

log = logging.getLogger(__name__)

_MEMORY_GRACE_S = 0.5
"""At most, for a task that goes on filling the host's memory meanwhile."""


class Stopper:
    """Looks at one kernel at a time, whenever its pool ticks."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._memory = MemoryWatch()

    def check(self, slot: KernelSlot, active: Active) -> bool:
        """Press the active run to stop if it has to; False when it may go on."""
        run = active.run
        if run in slot.stops:
            _press(slot, run, CANCELLED, slot.stops[run])
            return True
        if run not in slot.breaches:
            breach = self._breach(slot, active.given.piece, active.elapsed_s)
            if breach is None:
                return False
            memory = breach.cause == OVERDRAWN
            grace_s = min(self._grace_s, _MEMORY_GRACE_S) if memory else self._grace_s
            slot.breaches[run] = (breach, time.monotonic() + grace_s)
        breach, deadline = slot.breaches[run]
        _press(slot, run, breach.cause, deadline, int(breach.amount))
        return True

    def _breach(self, slot: KernelSlot, piece: Piece, elapsed_s: float) -> Breach | None:
        seconds, limit = piece.brief.task_timeout_s, piece.brief.memory_bytes
        if seconds is not None and elapsed_s > seconds:
            return Breach(TIMED_OUT, seconds, elapsed_s)
        if limit is not None:
            used = self._memory.used_bytes(slot.process.pid, limit)
            if used > limit:
                return Breach(OVERDRAWN, limit, used)
        return None


def _press(slot: KernelSlot, run: int, cause: int, deadline: float, amount: int = 0) -> None:
    state = slot.process.state
    if (state.target, state.cause) != (run, cause):
        state.aim(run, cause, amount)
        slot.process.interrupt()
    elif time.monotonic() >= deadline:
        log.info("killing kernel pid=%d: run %d did not stop", slot.process.pid, run)
        slot.process.kill()
