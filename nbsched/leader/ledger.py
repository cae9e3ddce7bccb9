"""The leader's writes to etcd: job status, and requests that have been carried out.

Every write is one transaction guarded by the leader's own key. That a job was taken on
waits for a moment, so that a short job costs one status write and not two; that it has
ended is written at once.
"""

from __future__ import annotations

import asyncio
import logging
import time

from nbsched.errors import StoreUnreachableError
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.patience import RETRY_S, within
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

    def __init__(self, store: Store, names: Names, leadership: Leadership) -> None:
        self._store = store
        self._names = names
        self._leadership = leadership
        self._waiting: dict[str, Change] = {}
        self._accepted: dict[JobId, tuple[float, int]] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()

    def remember(self, status: JobStatus) -> None:
        """Keep what an earlier leader wrote of a job."""
        self._accepted[status.job] = (status.accepted_at, status.log_from)

    def save(self, command: SaveStatus, log_from: int) -> None:
        accepted_at, first = self._accepted.setdefault(command.job, (time.time(), log_from))
        status = JobStatus(
            job=command.job,
            state=command.state,
            term=self._leadership.term,
            log_from=first,
            ok=command.ok,
            failed=command.failed,
            cancelled=command.cancelled,
            total=command.total,
            accepted_at=accepted_at,
            ended_at=time.time() if command.state.ended else None,
            note=command.note,
        )
        if command.state.ended:
            del self._accepted[command.job]
        self._enter(Put(self._names.status(command.job), to_json(status)))
        if command.state.ended:
            self._urgent.set()

    def drop(self, command: DropRequest) -> None:
        self._enter(Delete(self._names.request(command.job, command.request)))

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
                await self._write([self._waiting.pop(key) for key in keys])

    async def _write(self, changes: list[Change]) -> None:
        while True:
            self._leadership.check()
            try:
                commit = await self._store.commit([self._leadership.guard], changes)
            except StoreUnreachableError as error:
                log.warning("Status is not written yet: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if not commit.succeeded:
                raise LeadershipLostError(f"The key of term {self._leadership.term} is gone.")
            return
