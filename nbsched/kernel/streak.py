"""Short tasks one after another, with as little between them as the promises allow.

For each task the kernel says in shared memory what it runs and looks whether that is
still wanted, and that is all. Whatever is not a plain return (an exception, an
interrupt, a fork, another working directory) ends the streak, and `tasks` takes over
with all its care. Results that are small scalars are kept as they are; the others are
pickled at once, because the next task might change them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.interrupts import Interrupts
from nbsched.kernel.jobs import LoadedJob, Unreadable
from nbsched.kernel.outbox import Outbox
from nbsched.kernel.protocol import RunTasks
from nbsched.kernel.sharedstate import ACTIVE, VOID_BELOW, SharedState

_KEPT = frozenset({int, float, bool, complex, type(None)})
"""Small, immutable and without identity: they may wait to be pickled together."""
_NONE: frozenset[type] = frozenset()


class Keeping(Enum):
    """What has become of a result that is not of `_KEPT`."""

    APART = auto()
    """It lies in the outbox by itself, or an error in place of it."""
    AMONG_PLAIN = auto()
    """It is to lie with those of `_KEPT`."""
    LAST = auto()
    """As apart; but the kernel is not to run anything more."""


KeepOther = Callable[[LoadedJob, RunTasks, int, Any, float], Keeping]
"""Takes such a result: job, hand-over, run, value, elapsed seconds."""


class Stopped(NamedTuple):
    """Why a streak ended before its last task.

    ``void``: the run was not wanted any more, nothing of it was run. ``unreadable``: the
    error is that of reading the item. ``ended``: its outcome is in the outbox already; it was
    interrupted too late, or its kernel is spent. Else the task has ended with ``value`` or
    ``error``.
    """

    run: int
    value: Any = None
    error: BaseException | None = None
    void: bool = False
    unreadable: bool = False
    ended: bool = False


class Streak:
    """Runs tasks of one hand-over. Main thread only."""

    def __init__(
        self,
        state: SharedState,
        interrupts: Interrupts,
        disturbances: Disturbances,
        outbox: Outbox,
        keep_other: KeepOther,
    ) -> None:
        self._state = state
        self._interrupts = interrupts
        self._disturbances = disturbances
        self._outbox = outbox
        self._keep_other = keep_other

    def run(self, job: LoadedJob, batch: RunTasks, first: int) -> Stopped | None:
        """Run the tasks from run ``first`` on; None when all have plainly returned."""
        end = batch.first_run + batch.stop - batch.start
        cells = self._state.cells
        notes = self._disturbances.notes
        start = batch.start + first - batch.first_run
        call = job.caller()
        run = first
        kept = _KEPT
        keep = self._outbox.open(batch, run, start).append
        timed = batch.task_timeout_s is not None
        hit = self._interrupts.hit
        try:
            items = job.blocks[batch.block].some(start, batch.stop)
        except BaseException as error:
            return Stopped(run, error=error, unreadable=True)
        take = iter(items).__next__
        began = time.monotonic_ns()
        self._state.started(began)
        try:
            try:
                self._interrupts.arm_all()
                while run < end:
                    cells[ACTIVE] = run
                    if run < cells[VOID_BELOW]:
                        return Stopped(run, void=True)
                    if timed:
                        self._state.started(time.monotonic_ns())
                    # Only now: to unpickle an item is to run this task's code.
                    item = take()
                    if type(item) is Unreadable:
                        return Stopped(run, error=item.error, unreadable=True)
                    value = call(item)
                    if notes:
                        return Stopped(run, value)
                    if type(value) in kept:
                        keep(value)
                    else:
                        self._interrupts.disarm()
                        now = time.monotonic_ns()
                        elapsed_s = (now - began) * 1e-9
                        keeping = self._keep_other(job, batch, run, value, elapsed_s)
                        if keeping is Keeping.LAST:
                            return Stopped(run, ended=True)
                        if keeping is Keeping.AMONG_PLAIN:
                            keep(value)
                        else:
                            kept = _NONE
                        began = now
                        self._interrupts.arm_all()
                    run += 1
                return None
            except BaseException as error:
                return self._stopped(run, hit, error)
            finally:
                self._end()
        except KeyboardInterrupt as error:  # it came within the lines above
            self._end()
            return self._stopped(run, hit, error)

    def _end(self) -> None:
        self._interrupts.disarm()
        if self._disturbances.forked:
            os._exit(0)  # a child that a task forked: the outbox's lock may be held for ever
        self._outbox.close()

    def _stopped(self, run: int, hit: int, error: BaseException) -> Stopped:
        """``hit`` is the run that was interrupted last before the streak began."""
        late = self._interrupts.hit
        return Stopped(late, ended=True) if hit != late < run else Stopped(run, error=error)
