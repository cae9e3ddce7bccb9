"""What belongs to no job: found by comparison with the records, now and then, and deleted.

Uploads whose client died before it committed the job, outcomes that came after their job
was removed, a status that was written after that. Every such thing is left alone until it
has been seen for `ORPHAN_S`, and what a client has uploaded for as long as that client is
there: the record of a job comes after its first blocks, and if a server is full, long after.
(A client shows that it is there before it uploads, and commits only if it has been there ever
since: see `nbsched.client.committing`.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from nbsched import forgetting
from nbsched.leader.election import Leadership
from nbsched.leader.patience import answered
from nbsched.model import ClientId, JobId
from nbsched.names import Names
from nbsched.storage import Store
from nbsched.transport import Bus

log = logging.getLogger(__name__)

LOOK_S = 600.0
ORPHAN_S = 3600.0
_MOST_PURGED = 1000
"""In one look."""


class Orphans:
    """Looks through logs and statuses on behalf of one leadership."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        store: Store,
        bus: Bus,
        names: Names,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leadership = leadership
        self._store = store
        self._bus = bus
        self._names = names
        self._clock = clock
        self._seen: dict[str, float] = {}
        """Since when something of a job that does not exist has been there."""

    async def run(self) -> None:
        """Look, for ever. Raises LeadershipLostError."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Compare once, and delete what has had no job for long enough."""
        names = self._names
        uploads = await self._owners(names.inputs_log, names.all_inputs)
        results = await self._owners(names.results_log, names.all_results)
        statuses = await self._ids_under(names.statuses)
        clients = await self._ids_under(names.clients)
        # Read last: a job that was committed meanwhile is among them.
        known = await self._ids_under(names.jobs) | await self._ids_under(names.forgotten_jobs)
        known |= {job for job, client in uploads.items() if client in clients}
        now = self._clock()
        without = (uploads.keys() | results.keys() | statuses) - known
        self._seen = {job: self._seen.get(job, now) for job in sorted(without)}
        due = [job for job, since in self._seen.items() if now - since >= ORPHAN_S]
        for job in due[:_MOST_PURGED]:
            client = uploads.get(job, results.get(job))
            await self._delete(JobId(job), client, status=job in statuses)
            del self._seen[job]

    async def _owners(self, log_name: str, subject: str) -> dict[str, ClientId]:
        """Jobs that have messages in the log, and whose they are."""
        subjects = await answered(partial(self._bus.subjects, log_name, subject))
        owners = (owner for each in subjects if (owner := self._names.owner_of(each)) is not None)
        return {job: client for client, job in owners}

    async def _ids_under(self, prefix: str) -> set[str]:
        found = await answered(partial(self._store.list, prefix))
        return {item.key.removeprefix(prefix) for item in found.items}

    async def _delete(self, job: JobId, client: ClientId | None, *, status: bool) -> None:
        self._leadership.check()
        log.info("job=%s does not exist; what is left of it is deleted", job)
        names, purge = self._names, self._bus.purge
        if client is not None:
            for log_name, subject in (
                (names.inputs_log, names.job_inputs(client, job)),
                (names.results_log, names.job_results(client, job)),
            ):
                await answered(partial(purge, log_name, subject), patient=True)
        if status:
            guards = [self._leadership.guard]
            await answered(partial(forgetting.drop_status, self._store, names, job, guards))
