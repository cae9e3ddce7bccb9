"""The end of jobs: removed when their retention is over, and cleared when forgotten.

Owns when a job goes, and the deletion of what it has in logs and files. What makes a job
gone is one guarded transaction (`nbsched.forgetting`), whether it is written here or by a
client. Work is done in rounds of bounded size; a new leader finds both kinds of work in
the store again.

Wall clocks may be wrong. A term has one clock, its host's wall clock when it began, which goes
on evenly from there; the ends that it sees are written with it. Ends of earlier terms are
other hosts' clocks: none of those jobs goes before this term has lasted for some time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections.abc import Callable
from functools import partial

from nbsched import forgetting
from nbsched.errors import StoreFullError
from nbsched.forgetting import StoredJob
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.patience import answered, within
from nbsched.model import ForgottenJob, JobId
from nbsched.names import Names
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.storage import Delete, Store
from nbsched.transport import Bus

log = logging.getLogger(__name__)

_MOST_REMOVED = 50
_MOST_CLEARED = 16
"""In one round. A purge holds its log for a moment, and outcomes wait for that."""
_LONGEST_WAIT_S = 3600.0
_FIRST_S = 600.0
"""So long a term removes nothing by age, or for the retention if that is less: a host whose
clock is ahead must not empty the cluster in the moment in which it becomes leader."""
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while a laptop sleeps, as Linux' monotonic clock does not: the term may go on, too."""
_STALE = 1000
"""Outdated entries of the heap that cost nothing."""


def _clock_of_now() -> Callable[[], float]:
    """Wall time that goes on evenly from here: a clock that is set forward ends no job."""
    wall, elapsed = time.time(), time.clock_gettime(_ELAPSED)
    return lambda: wall + time.clock_gettime(_ELAPSED) - elapsed


class Retention:
    """Which jobs go when, and the task that lets them go."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        store: Store,
        bus: Bus,
        names: Names,
        retention_s: float,
        folder: SharedFolder | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._leadership = leadership
        self._store = store
        self._bus = bus
        self._names = names
        self._retention_s = retention_s
        self._folder = folder
        self.clock = _clock_of_now() if clock is None else clock
        """The term's wall time. Ends are written with it, or they would be due by another."""
        self._not_before = self.clock() + min(retention_s, _FIRST_S)
        self._due: list[tuple[float, JobId]] = []
        """Heap of the times at which jobs go; entries may be outdated."""
        self._ended_at: dict[JobId, float] = {}
        self._marks: dict[JobId, ForgottenJob] = {}
        """Removed jobs whose data are still to be deleted."""
        self._wake = asyncio.Event()

    def ended(self, job: JobId, ended_at: float) -> None:
        """A job has ended; may be said again and again."""
        if math.isinf(self._retention_s) or self._ended_at.get(job) == ended_at:
            return
        self._ended_at[job] = ended_at
        heapq.heappush(self._due, (self._due_at(ended_at), job))
        self._wake.set()

    def _due_at(self, ended_at: float) -> float:
        return max(ended_at + self._retention_s, self._not_before)

    def forgotten(self, mark: ForgottenJob) -> None:
        """A job's records are gone, its data not yet; may be said again and again."""
        self._marks[mark.id] = mark
        self._ended_at.pop(mark.id, None)
        if len(self._due) > 2 * len(self._ended_at) + _STALE:
            # Jobs are forgotten as fast as they end: their times must not stay for a day.
            self._due = [(self._due_at(at), job) for job, at in self._ended_at.items()]
            heapq.heapify(self._due)
        self._wake.set()

    async def run(self) -> None:
        """Remove and clear, for ever. Raises LeadershipLostError."""
        while True:
            self._wake.clear()
            await self._clear_some()
            await self._remove_some()
            if not self._marks:
                await within(self._wait_s(), self._wake.wait())

    def _wait_s(self) -> float:
        if not self._due:
            return _LONGEST_WAIT_S
        return min(max(0.0, self._due[0][0] - self.clock()), _LONGEST_WAIT_S)

    # ------------------------------------------------------------ removing

    async def _remove_some(self) -> None:
        jobs: list[JobId] = []
        while self._due and self._due[0][0] <= self.clock() and len(jobs) < _MOST_REMOVED:
            due, job = heapq.heappop(self._due)
            ended_at = self._ended_at.get(job)
            if ended_at is not None and self._due_at(ended_at) == due:
                del self._ended_at[job]
                jobs.append(job)
        await asyncio.gather(*map(self._remove, jobs))

    async def _remove(self, job: JobId) -> None:
        """Remove a job unless it was opened again. One that changes meanwhile, or that a
        full etcd does not let go, is listed among the ended ones again when it is one."""
        stored = await answered(partial(forgetting.read, self._store, self._names, job))
        ended_at = None if stored is None or stored.status is None else stored.status.ended_at
        if stored is None or ended_at is None:
            return
        if self._due_at(ended_at) > self.clock():
            self.ended(job, ended_at)
            return
        self._leadership.check()
        if await answered(partial(self._remove_stored, stored)):
            log.info("job=%s is removed: it ended %.0f s ago", job, self.clock() - ended_at)

    async def _remove_stored(self, stored: StoredJob) -> bool:
        try:
            guards = [self._leadership.guard]
            return await forgetting.remove(self._store, self._names, stored, guards)
        except StoreFullError as error:
            log.warning("job=%s stays for now: %s", stored.record.id, error)
            return False

    # ------------------------------------------------------------ clearing

    async def _clear_some(self) -> None:
        marks = list(self._marks.values())[:_MOST_CLEARED]
        if not marks:
            return
        await asyncio.gather(*map(self._clear, marks))
        self._leadership.check()
        gone = [mark.id for mark in marks]
        # A status that was on its way when its job was removed has come after that.
        changes = [Delete(self._names.status(job)) for job in gone]
        changes += [Delete(self._names.forgotten_job(job)) for job in gone]
        commit = await answered(partial(self._store.commit, [self._leadership.guard], changes))
        if not commit.succeeded:
            raise LeadershipLostError(f"The key of term {self._leadership.term} is gone.")
        for mark in marks:
            self._marks.pop(mark.id, None)

    async def _clear(self, mark: ForgottenJob) -> None:
        """Delete what a job has in logs and files. Doing it twice does no harm."""
        names, purge = self._names, self._bus.purge
        results = names.job_results(mark.client, mark.id)
        await answered(partial(purge, names.results_log, results), patient=True)
        if not mark.inline:
            inputs = names.job_inputs(mark.client, mark.id)
            await answered(partial(purge, names.inputs_log, inputs), patient=True)
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove, mark.id)
