"""The leader's writes to etcd: job status, and what has been dealt with or is of a job that
is gone.

Every write is one transaction guarded by the leader's own key. That a job was taken on
waits for a moment, so that a short job costs one status write and not two; that it has
ended is written at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nbsched.errors import StoreUnreachableError
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.patience import pause_after, within
from nbsched.model import JobId, JobStatus, to_json
from nbsched.names import Names
from nbsched.scheduler.commands import DropRequest, SaveStatus
from nbsched.storage import Change, Delete, Put, Store

log = logging.getLogger(__name__)

GATHER_S = 0.05
_MOST_CHANGES = 100
"""A transaction may have 128 operations by default."""


class Ledger:
    """What is to be written, and the task that writes it."""

    def __init__(
        self,
        store: Store,
        names: Names,
        leadership: Leadership,
        on_end: Callable[[JobId, float], None],
        *,
        clock: Callable[[], float],
    ) -> None:
        """``on_end`` gets jobs whose end has been written, and its time by ``clock``."""
        self._store = store
        self._names = names
        self._leadership = leadership
        self._on_end = on_end
        self._clock = clock
        self._ends: dict[str, tuple[JobId, float]] = {}
        """Ends that are waiting to be written, by the key of their status."""
        self._waiting: dict[str, Change] = {}
        self._accepted: dict[JobId, float] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()

    def remember(self, status: JobStatus) -> None:
        """Keep what an earlier leader wrote of a job."""
        self._accepted[status.job] = status.accepted_at

    def save(self, command: SaveStatus) -> None:
        accepted_at = self._accepted.setdefault(command.job, self._clock())
        status = JobStatus(
            job=command.job,
            state=command.state,
            term=self._leadership.term,
            ok=command.ok,
            failed=command.failed,
            cancelled=command.cancelled,
            total=command.total,
            accepted_at=accepted_at,
            ended_at=self._clock() if command.state.ended else None,
            note=command.note,
        )
        key = self._names.status(command.job)
        self._enter(Put(key, to_json(status)))
        if status.ended_at is None:
            self._ends.pop(key, None)
            return
        del self._accepted[command.job]
        self._ends[key] = (command.job, status.ended_at)
        self._urgent.set()

    def drop(self, command: DropRequest) -> None:
        self._enter(Delete(self._names.request(command.job, command.request)))

    def drop_status(self, job: JobId) -> None:
        key = self._names.status(job)
        self._ends.pop(key, None)
        self._accepted.pop(job, None)
        self._enter(Delete(key))

    def _enter(self, change: Change) -> None:
        self._waiting[change.key] = change
        self._wake.set()

    async def run(self) -> None:
        """Write what is entered, for ever. Raises LeadershipLostError."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await within(GATHER_S, self._urgent.wait())
            self._urgent.clear()
            while self._waiting:
                keys = list(self._waiting)[:_MOST_CHANGES]
                ends = [self._ends.pop(key) for key in keys if key in self._ends]
                await self._write([self._waiting.pop(key) for key in keys])
                for job, ended_at in ends:
                    self._on_end(job, ended_at)

    async def _write(self, changes: list[Change]) -> None:
        while True:
            self._leadership.check()
            try:
                commit = await self._store.commit([self._leadership.guard], changes)
            except StoreUnreachableError as error:
                log.warning("Status is not written yet: %s", error)
                await asyncio.sleep(pause_after(error))
                continue
            if not commit.succeeded:
                raise LeadershipLostError(f"The key of term {self._leadership.term} is gone.")
            return
